"""Run files from Keras's own `model.export` in their runtimes, at two sizes.

TensorFlow and JAX export a SavedModel, and PyTorch exports ONNX.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from cases import cases
from keras import layers, ops
from own_layers import EVERY_LAYER, Subclassed
from zoo import WIDTH

import keras_moe

SIZES = [(2, 5), (3, 9)]


def model_of(layer):
    inputs = keras.Input((None, WIDTH))
    return keras.Model(inputs, layer(layers.Dense(WIDTH)(inputs)))


def loaded(model, folder, **options):
    """Export a model; return the file as a function of an array."""
    if BACKEND == "torch":
        import onnxruntime

        path = str(folder / "model.onnx")
        model.export(path, format="onnx", verbose=False, **options)
        session = onnxruntime.InferenceSession(path)
        (name,) = (tensor.name for tensor in session.get_inputs())
        return lambda x: session.run(None, {name: x})[0]
    import tensorflow as tf

    model.export(folder / "model", verbose=False, **options)
    artifact = tf.saved_model.load(folder / "model")
    return lambda x: artifact.serve(x).numpy()


def assert_exports(model, folder, rng, **options):
    run = loaded(model, folder, **options)
    for size in SIZES:
        x = draw(rng, *size, WIDTH)
        want = to_numpy(model(ops.convert_to_tensor(x), training=False))
        np.testing.assert_allclose(run(x), want, atol=1e-5)


# On JAX, the subclassed model covers the same.
FULL = ["MoEBlock full"] if BACKEND == "tensorflow" else []
NAMES = [
    "MoEBlock full",
    "any experts",
    "experts choose twice",
    "capacity by score",
    "MixtureOfModels",
    "MoEBlock of unlike experts",
]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", cases(NAMES, everywhere=FULL))
def test_functional_model(name, tmp_path, rng):
    model = model_of(EVERY_LAYER[name]())
    model(np.zeros((1, 4, WIDTH), "float32"))
    assert_exports(model, tmp_path, rng)


def null_experts():
    return keras_moe.Router(8, top_k=2, num_null_experts=4)


def groups():
    return keras_moe.Router(8, top_k=2, num_groups=4, top_k_groups=2)


def two_stages():
    return keras_moe.HierarchicalRouter(8, num_groups=2)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    cases(
        [null_experts, groups, two_stages],
        everywhere=[groups] if BACKEND == "jax" else [],
    ),
)
def test_routers_with_other_choices(make, tmp_path, rng):
    model = model_of(keras_moe.MoEBlock(8, 12, router=make()))
    model(np.zeros((1, 4, WIDTH), "float32"))
    assert_exports(model, tmp_path, rng)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_subclassed_model(tmp_path, rng):
    model = Subclassed()
    model(np.zeros((1, 4, WIDTH), "float32"))
    spec = keras.InputSpec(shape=(None, None, WIDTH), dtype="float32")
    assert_exports(model, tmp_path, rng, input_signature=[spec])


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch exports ONNX")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ties_in_onnx(tmp_path):
    """Equal scores choose the first experts, and equal pairs keep their order.

    All logits are zero, so experts 0 and 1 have the weight 1/2 each. Each
    expert has `ceil(2 * 3 / 6)` = 1 place, so only the first token is computed.
    """
    block = keras_moe.MoEBlock(
        6, 4, kernel_initializer="ones", eval_capacity_factor=1.0
    )
    model = keras.Model(inputs := keras.Input((None, WIDTH)), block(inputs))
    block.router.kernel.assign(np.zeros((WIDTH, 6)))
    model(np.zeros((1, 3, WIDTH), "float32"))
    run = loaded(model, tmp_path)
    outputs = run(np.ones((1, 3, WIDTH), "float32"))
    # The output is the sum of four hidden units of 8 ones each.
    np.testing.assert_allclose(outputs[0, 0], 32.0)
    np.testing.assert_array_equal(outputs[0, 1:], 0)
