"""Use eight virtual devices in one process of JAX.

`python devices_jax.py FOLDER PART` writes the results of a part to FOLDER, for
`test_distribution_jax.py`. T tokens, D hidden_dim, E experts, K top_k.
"""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)
import light_keras  # noqa: F401

# isort: split
import distributed_model
import jax
import keras
import numpy as np
import shard_map_jax
from distributed_model import furthest
from programs_jax import PROGRAMS, programs, ragged

import keras_moe
from keras_moe.distribution import expert_parallel

T, D, E, K = 36, 8, 8, 2  # T is not divisible by eight
LAYOUTS = {
    "8x1": {"data": 8},
    "2x4": {"data": 2, "expert": 4},
    "1x8": {},
    "2x2x2": {"data": 2, "expert": 2, "model": 2},
}


def by_hand():
    """Return Keras's own distribution: batch over two, experts over four."""
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*experts/.*_kernel"] = ("model", None, None)
    layouts[".*experts/.*_bias"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layouts)


def train_in_layouts(folder, names=None):
    """Train in each layout; return the differences and the kernel bytes."""
    alone = distributed_model.run_alone()
    found = {}
    places = {name: expert_parallel(**kw) for name, kw in LAYOUTS.items()}
    places["keras data"] = keras.distribution.DataParallel()
    places["keras map"] = by_hand()
    for name in names or places:
        distribution = places[name]
        with distribution.scope():
            model = distributed_model.make_model()
            x, y = distributed_model.make_data()
            losses = distributed_model.train(
                model, x, y, batch_size=distributed_model.BATCH
            )
            result = {"losses": losses, **distributed_model.weights_of(model)}
            outputs = model.predict(x[:16], verbose=0)
            model.save_weights(folder / f"{name}.weights.h5")
        found[name] = {
            "furthest": furthest(result, alone)[0],
            "kernel bytes": kernel_bytes(model),
        }
        np.save(folder / f"{name}.npy", outputs)
    return found


def kernel_bytes(model):
    """Return the bytes of the expert kernels, in total and per device."""
    kernels = [w.value for w in model.weights if w.path.endswith("_kernel")]
    each = [
        sum(k.addressable_shards[i].data.nbytes for k in kernels)
        for i in range(8)
    ]
    return {"all": sum(k.nbytes for k in kernels), "each": each}


def load_elsewhere(folder):
    """Load weights from eight devices on one and on four, and compare."""
    x, _ = distributed_model.make_data()
    found = {}
    for count in (1, 4):
        with expert_parallel(count).scope():
            model = distributed_model.make_model(seed=3)
            model.load_weights(folder / "1x8.weights.h5")
            outputs = model.predict(x[:16], verbose=0)
        expected = np.load(folder / "1x8.npy")
        found[str(count)] = float(np.abs(outputs - expected).max())
    return found


# --- a block, its outputs and all gradients ----------------------------------


def skewed(block):
    """Send nine tenths of the pairs to the first two experts."""
    kernel = np.array(block.router.kernel.value)
    kernel[0, :2] += 4
    block.router.kernel.assign(kernel)


def blocks():
    """Return blocks that exchange their rows in every way."""
    router = keras_moe.ExpertChoiceRouter(E, bidirectional=True)
    return {
        "skewed": keras_moe.MoEBlock(
            E, 8, activation=keras_moe.ClippedSwiGLU(0.5), gated=True
        ),
        "skewed no bias": keras_moe.MoEBlock(E, 8, use_bias=False, top_k=1),
        "any number": keras_moe.MoEBlock(E, 8, router=keras_moe.TopPRouter(E)),
        "expert choice": keras_moe.MoEBlock(E, 8, router=router),
        "examples": keras_moe.MoEBlock(E, 8, level="example"),
        "null": keras_moe.MoEBlock(
            E, 8, router=keras_moe.Router(E, num_null_experts=2)
        ),
        "inputs": keras_moe.MoEBlock(E, 8, weights_on="inputs"),
        "sequences": keras_moe.MoEBlock(E, 8, expert_capacity=1),
        "half": keras_moe.MoEBlock(E, 8, dtype="mixed_bfloat16"),
        "integers": keras_moe.MoEBlock(E, 8),
        "attention": keras_moe.TransformerEncoderBlock(
            2, keras_moe.MoEBlock(E, 8, shared_expert_dim=4)
        ),
    }


def gradients(block, x, weight):
    """Return the output and the gradients of its weighted sum."""
    trainable = [v.value for v in block.trainable_variables]
    others = [v.value for v in block.non_trainable_variables]

    def loss(trainable, x):
        y, _ = block.stateless_call(trainable, others, x, training=True)
        y = y.astype("float32")
        return (y * weight).sum(), y

    run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (by_weight, by_x), y = run(trainable, x)
    return [np.asarray(v, "float32") for v in (y, by_x, *by_weight)]


def compare_blocks(names=None):
    """Return the largest relative difference from one device per block.

    A difference is divided by the largest value, or by one if that is more,
    because the gradient of a key bias is zero except for rounding.
    """
    rng = np.random.default_rng(0)
    found = {}
    for name, block in blocks().items():
        if names and name not in names:
            continue
        of_sequences = name in ("examples", "attention", "sequences")
        shape = (T, 2, D) if of_sequences else (T, D)
        x = np.abs(rng.normal(size=shape)).astype("float32")
        weight = rng.normal(size=shape).astype("float32")
        block.build(shape)
        if name.startswith("skewed"):
            skewed(block)
        if name == "integers":
            block.experts.quantize("int8")
        expected = gradients(block, x, weight)
        layouts = ["2x4"] if name != "attention" else []
        if name.startswith(("skewed", "attention", "integers")):
            layouts.append("2x2x2")
        for layout in layouts:
            with expert_parallel(**LAYOUTS[layout]).scope():
                result = gradients(block, x, weight)
            found[f"{name}, {layout}"] = max(
                float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
                for a, b in zip(result, expected, strict=True)
            )
    return found


def drop_in_shards(priorities=("position", "score")):
    """Compare eight devices that drop tokens with the block on each eighth."""
    found = {}
    for priority in priorities:
        block = keras_moe.MoEBlock(E, 8, capacity_factor=1.0, priority=priority)
        x = np.random.default_rng(1).normal(size=(64, D)).astype("float32")
        block.build(x.shape)
        parts = [
            np.asarray(block(part, training=True)) for part in np.split(x, 8)
        ]
        with expert_parallel().scope():
            run = jax.jit(
                lambda x, block=block: block.stateless_call(
                    [v.value for v in block.trainable_variables],
                    [v.value for v in block.non_trainable_variables],
                    x,
                    training=True,
                )[0]
            )
            y = np.asarray(run(x))
        found[priority] = float(np.abs(y - np.concatenate(parts)).max())
    return found


def drop_hidden_units():
    """Return the shares of units that are dropped, and alike on two devices.

    The experts are identities, so an output is 0 or x / (1 - rate).
    """
    block = keras_moe.MoEBlock(
        E, 64, 1, dropout=0.5, use_bias=False, activation="linear"
    )
    x = np.ones((64, 64), "float32")
    block.build(x.shape)
    block.router.kernel.assign(np.zeros((64, E)))
    for kernel in (block.experts.up_kernel, block.experts.down_kernel):
        kernel.assign(np.stack([np.eye(64)] * E))
    with expert_parallel(data=8).scope():
        y = np.asarray(block(x, training=True))
    zero = (y == 0).reshape(8, 8, 64)
    return {
        "dropped": float(zero.mean()),
        "alike": float((zero[0] == zero[1]).mean()),
    }


def raised():
    """Return the error message of each wrong layout."""

    def build(block, width):
        block.build((16, width))

    def feed():
        keras.distribution.distribution().get_data_layout((10, 4))

    found = {}
    for name, arguments, call in (
        ("experts", {}, lambda: build(keras_moe.MoEBlock(6, 8), D)),
        (
            "inner",
            {"model": 8},
            lambda: build(keras_moe.MoEBlock(E, 12), D),
        ),
        ("batch", {}, feed),
        ("devices", {"expert": 3}, lambda: None),
        ("idle", {"data": 2, "expert": 2}, lambda: None),
    ):
        try:
            with expert_parallel(**arguments).scope():
                call()
            found[name] = "nothing"
        except ValueError as error:
            found[name] = str(error)
    return found


def train_in_three_axes(folder):
    """Train in the layout that shards along all three axes; drop tokens."""
    return {
        "layouts": train_in_layouts(folder, ["2x2x2"]),
        "capacity": drop_in_shards(["position"]),
    }


def send_unevenly(folder):
    """Run one block and one dropout, and compile a training step."""
    return {
        "dropout": drop_hidden_units(),
        "blocks": compare_blocks(["skewed"]),
        "raised": raised(),
        "programs": programs([(64, None, True)]),
    }


def use_after_failures():
    """Call a model with numbers of rows that do not divide; then use it again.

    Return, for each call, the error message and the largest change of the
    outputs, and the number of steps of the `fit` that follows.
    """
    keras.distribution.set_distribution(expert_parallel())
    x = np.random.default_rng(0).normal(size=(8, 3, D)).astype("float32")
    inputs = keras.Input((3, D))
    outputs = keras_moe.MoEBlock(8, 4)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse", metrics=["mae"])
    before = model.predict(x, verbose=0)
    calls = {
        "predict": lambda: model.predict(x[:5], verbose=0),
        "evaluate": lambda: model.evaluate(x[:5], x[:5], verbose=0),
        "fit": lambda: model.fit(x[:5], x[:5], verbose=0),
        "second batch": lambda: model.predict(
            np.repeat(x, 2, 0)[:13], batch_size=8, verbose=0
        ),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            after = model.predict(x, verbose=0)
            found[name] = str(error), float(np.max(np.abs(after - before)))
    model.fit(x, x, verbose=0)
    found["steps"] = int(model.optimizer.iterations)
    keras.distribution.set_distribution(None)
    return found


def map_shards(folder):
    """Run blocks in `jax.shard_map`."""
    return shard_map_jax.differences()


def fail(folder):
    """Use a model after calls that fail."""
    return use_after_failures()


def everything(folder):
    """Run every layout, block, and program."""
    return {
        "layouts": train_in_layouts(folder),
        "loaded": load_elsewhere(folder),
        "blocks": compare_blocks(),
        "capacity": drop_in_shards(),
        "raised": raised(),
        "programs": programs(PROGRAMS),
        "ragged": ragged(),
    }


def main(folder, part):
    """Write a part's results to `found.json`."""
    folder = pathlib.Path(folder)
    parts = (train_in_three_axes, send_unevenly, map_shards, fail, everything)
    found = {p.__name__: p for p in parts}[part](folder)
    (folder / "found.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
