"""Check what every layer does, on every backend.

Each layer is trained once, in `trained`. The tests of training, of saving,
and of loading on another backend share the model.
"""

import dataclasses

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from cases import cases
from elsewhere import run_on
from zoo import LAYERS, WIDTH, model_of

OTHER = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}[BACKEND]
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
# JAX and TensorFlow trace a program for each shape and step. There, tests
# that need several programs run for one layer of each kind, because a layer
# computes the same `keras.ops` on all three backends.
OF_EACH_KIND = ["Router", "MoEBlock full", "TransformerEncoderBlock"]
mostly_on_one_backend = pytest.mark.parametrize(
    "name", cases(LAYERS, everywhere=OF_EACH_KIND)
)


def task(rng, samples=64, length=5):
    """Return a regression that a small model can begin to learn."""
    x = rng.normal(size=(samples, length, WIDTH)).astype("float32")
    y = np.tanh(x[..., :2].sum((1, 2), keepdims=True))[:, 0]
    return x, y


def losses_of_training(model, x, y, epochs=8, **compile_options):
    model.compile(keras.optimizers.Adam(0.01), "mse", **compile_options)
    history = model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return history.history["loss"]


@pytest.mark.fast
@every_layer
def test_config_round_trip(make):
    """The layer is built; Keras's harness tests layers that are not built."""
    layer = make()
    layer.build((None, 5, WIDTH))
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again.build((None, 5, WIDTH))
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


@pytest.mark.fast
@mostly_on_one_backend
def test_symbolic_and_eager_shapes_agree(name, rng):
    layer = LAYERS[name]()
    symbolic = layer(keras.Input((5, WIDTH), batch_size=3))
    eager = layer(rng.normal(size=(3, 5, WIDTH)).astype("float32"))
    assert tuple(symbolic.shape) == tuple(eager.shape) == (3, 5, WIDTH)
    dtype = keras.backend.standardize_dtype
    assert dtype(symbolic.dtype) == dtype(eager.dtype) == "float32"
    assert layer(keras.Input((None, WIDTH))).shape == (None, None, WIDTH)
    assert layer.compute_output_shape((3, 5, WIDTH)) == (3, 5, WIDTH)


@dataclasses.dataclass
class Trained:
    """A trained model around one layer, and its data."""

    model: keras.Model
    losses: list
    x: np.ndarray
    outputs: np.ndarray


FAST = pytest.param("MoEBlock", marks=pytest.mark.fast)


@pytest.fixture(
    scope="module",
    params=[FAST if name == "MoEBlock" else name for name in LAYERS],
)
def trained(request):
    """Train each layer once."""
    keras.utils.set_random_seed(0)
    model = model_of(LAYERS[request.param]())
    x, y = task(np.random.default_rng(0))
    losses = losses_of_training(model, x, y)
    return Trained(model, losses, x, model.predict(x, verbose=0))


def test_training_lowers_the_loss(trained):
    assert np.isfinite(trained.losses).all()
    assert trained.losses[-1] < 0.8 * trained.losses[0]


def test_saving_and_loading(trained, tmp_path):
    trained.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.predict(trained.x, verbose=0), trained.outputs
    )
    for one, other in zip(again.weights, trained.model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_saved_here_and_loaded_on_another_backend(trained, tmp_path):
    """Each backend saves every layer once and loads every layer once.

    The quantized models cover other pairs of backends.
    """
    np.save(tmp_path / "x.npy", trained.x)
    trained.model.save(tmp_path / "model.keras")
    run_on(OTHER, "load_elsewhere", tmp_path)
    there = np.load(tmp_path / f"model.{OTHER}.npy")
    np.testing.assert_allclose(there, trained.outputs, atol=1e-5)


# On PyTorch, both are eager.
@pytest.mark.parametrize(
    "name",
    cases(
        LAYERS, everywhere=["MoEBlock full"] if BACKEND == "tensorflow" else []
    ),
)
def test_run_eagerly_trains_to_the_same_loss(name, rng):
    """Eager and compiled steps compute the same values."""
    x, y = task(rng)
    results = []
    for eagerly in (True, False):
        keras.utils.set_random_seed(1)
        model = model_of(LAYERS[name]())
        results.append(
            losses_of_training(model, x, y, epochs=2, run_eagerly=eagerly)
        )
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3)


@pytest.mark.parametrize(
    "name", cases(LAYERS, everywhere=["Router", "MoEBlock full"])
)
@pytest.mark.parametrize(
    "policy",
    [
        "mixed_bfloat16",
        pytest.param("mixed_float16", marks=pytest.mark.one_backend),
    ],
)
def test_mixed_precision(name, policy, rng):
    """Outputs have half precision, weights do not, and the model trains."""
    if (BACKEND, policy) == ("jax", "mixed_float16") and "Transformer" in name:
        pytest.skip("keras.layers.MultiHeadAttention has no float16 on JAX CPU")
    make = LAYERS[name]
    keras.config.set_dtype_policy(policy)
    layer = make()
    x, y = task(rng)
    output = layer(x)
    half = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(output.dtype) == half
    assert np.isfinite(to_numpy(output)).all()
    assert {
        keras.backend.standardize_dtype(w.dtype) for w in layer.weights
    } <= {
        "float32",
        "uint32",
        "int64",
    }
    losses = losses_of_training(model_of(make()), x, y)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


@mostly_on_one_backend
def test_any_batch_size_and_length(name, rng):
    """One model takes several shapes, from `predict` and from a call."""
    model = model_of(LAYERS[name]())
    x = rng.normal(size=(7, 9, WIDTH)).astype("float32")
    whole = model.predict(x, batch_size=7, verbose=0)
    parts = model.predict(x, batch_size=2, verbose=0)
    assert whole.shape == parts.shape == (7, 1)
    shorter = model.predict(x[:3, :4], verbose=0)
    assert np.isfinite(shorter).all()
    np.testing.assert_allclose(to_numpy(model(x[:3, :4])), shorter, atol=1e-5)


COMPILED = {
    "jax": [
        pytest.param("MoEBlock full", marks=pytest.mark.slow),
        "Expert gated",
    ],
    "tensorflow": [
        "MoEBlock full",
        "Expert gated",
        pytest.param("MoEBlock", marks=pytest.mark.slow),
        pytest.param("MoEBlock of layers", marks=pytest.mark.slow),
    ],
    # torch.compile builds C++ for a minute.
    "torch": [pytest.param("MoEBlock full", marks=pytest.mark.slow)],
}[BACKEND]


@pytest.mark.filterwarnings(  # from dynamo, which traces Keras itself
    "ignore::DeprecationWarning",
    "ignore:The .grad attribute of a Tensor:UserWarning",
)
@pytest.mark.parametrize("name", COMPILED)
def test_jit_compile_trains_like_without(name, rng):
    """On TensorFlow, XLA takes another path, which must not abort."""
    x, y = task(rng)
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(1)
        layer = LAYERS[name]()
        for part in layer._flatten_layers():  # XLA draws other random numbers
            part.dropout = part.jitter = 0.0
        model = model_of(layer)
        losses = losses_of_training(
            model, x, y, epochs=3, jit_compile=jit_compile
        )
        results.append([*losses, *model.predict(x, verbose=0)[:, 0]])
        assert model.jit_compile is jit_compile
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-4)
