"""Save a model of each kind with its outputs, and the public names.

The script ran at commit ddcea2d, on PyTorch, before the package was
restructured, and wrote the files beside it. The `.keras` files were compressed
again. `tests/package/test_saved_before.py` loads them. The artifact was
exported from `tasks.keras` on TensorFlow by
`keras_moe.export.export(model, ..., "litert")`.

    KERAS_BACKEND=torch python tests/package/saved_before/make_files.py FOLDER
"""

import importlib
import json
import pathlib
import sys

import keras
import numpy as np

import keras_moe
from keras_moe import models

D = 8
BLOCKS = {
    "num_layers": 2,
    "hidden_dim": D,
    "num_heads": 2,
    "intermediate_dim": 6,
    "num_experts": 3,
}
MODULES = (
    "callbacks",
    "compress",
    "distribution",
    "ensemble",
    "export",
    "kernels",
    "layers",
    "models",
    "routing",
    "training",
)


def functional(*layers):
    x = inputs = keras.Input((5, D))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def block(router, **arguments):
    return keras_moe.MoEBlock(4, 6, router=router, **arguments)


def routers():
    return functional(
        keras_moe.MoEBlock(4, 6),
        block(
            keras_moe.Router(
                4, 2, "sigmoid", expert_bias=True, num_null_experts=2
            )
        ),
        block(keras_moe.CosineRouter(4)),
        block(keras_moe.ReLURouter(4, 2, max_experts=3)),
        block(keras_moe.TopPRouter(4)),
        block(keras_moe.SwitchRouter(4), capacity_factor=1.5),
        keras_moe.HierarchicalMoE(2, 4, 6),
    )


def experts():
    bank = keras_moe.Expert(6, 4)
    dense = [keras.layers.Dense(D), keras.layers.Dense(D, "relu")]
    gated = keras_moe.MoEBlock(3, 6, gated=True, activation="silu")
    return functional(
        keras_moe.MoEBlock(experts=dense, top_k=1),
        keras_moe.MoEBlock(4, experts=bank),
        keras_moe.MoEBlock(4, experts=bank, shared_expert_dim=4),
        keras_moe.SoftMoE(3, 6, 2),
        keras_moe.MoEBlock(3, 6, level="example"),
        keras_moe.TransformerEncoderBlock(2, gated),
    )


def tasks():
    x = keras.Input((D,))
    outputs = keras_moe.MultiGateMoE(3, 6, 2)(x)
    return keras.Model(x, [*outputs, *keras_moe.PLE(2, 1, 2, 6)(x)])


def mixture():
    x = keras.Input((D,))
    layers = [keras.layers.Dense(3) for _ in range(3)]
    return keras.Model(x, keras_moe.MixtureOfModels(layers, top_k=2)(x))


MODELS = {
    "routers": routers,
    "experts": experts,
    "tasks": tasks,
    "mixture": mixture,
    "classifier": lambda: models.MoEClassifier(20, 5, 3, **BLOCKS),
    "tagger": lambda: models.MoETagger(20, 5, 3, moe_every=2, **BLOCKS),
    "language_model": lambda: models.MoELanguageModel(
        20, 8, gated=True, **BLOCKS
    ),
    "seq2seq": lambda: models.MoESeq2Seq(20, 8, **BLOCKS),
    "vision": lambda: models.MoEVisionClassifier((8, 8, 3), 4, 3, **BLOCKS),
}


def inputs_of(name, rng):
    def ids(*shape):
        return rng.integers(1, 20, shape).astype("int32")

    def floats(*shape):
        return rng.normal(size=shape).astype("float32")

    if name == "seq2seq":
        return {"encoder_token_ids": ids(3, 5), "decoder_token_ids": ids(3, 4)}
    return {
        "classifier": lambda: ids(3, 5),
        "tagger": lambda: ids(3, 5),
        "language_model": lambda: ids(3, 5),
        "vision": lambda: floats(2, 8, 8, 3),
        "tasks": lambda: floats(3, D),
        "mixture": lambda: floats(3, D),
    }.get(name, lambda: floats(3, 5, D))()


def move_weights(model, rng):
    for weight in model.trainable_weights:
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))


def main(folder):
    keras.utils.set_random_seed(0)
    rng, arrays = np.random.default_rng(0), {}
    for name, make in MODELS.items():
        model, x = make(), inputs_of(name, rng)
        model(x)
        move_weights(model, rng)
        named = x if isinstance(x, dict) else {"": x}
        arrays |= {f"{name}/x/{key}": value for key, value in named.items()}
        outputs = keras.tree.flatten(model(x, training=False))
        for i, y in enumerate(outputs):
            y = keras.ops.convert_to_numpy(keras.ops.stop_gradient(y))
            arrays[f"{name}/y/{i}"] = y
        model.save(folder / f"{name}.keras")
    np.savez_compressed(folder / "arrays.npz", **arrays)
    modules = [importlib.import_module(f"keras_moe.{m}") for m in MODULES]
    names = {m.__name__: sorted(m.__all__) for m in (keras_moe, *modules)}
    (folder / "public_names.json").write_text(json.dumps(names, indent=1))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
