"""A layer that is computed twice makes one step and adds one loss."""

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy

import keras_moe
from keras_moe import MoEBlock, Router

D = 6
SCHEDULE = keras.optimizers.schedules.PolynomialDecay(0.5, 10)


def normalized_experts():
    """Return experts that update statistics and draw random numbers."""
    with keras.RematScope(None):  # Keras itself would move the mean twice
        return [
            keras.Sequential(
                [
                    keras.layers.Dense(D),
                    keras.layers.BatchNormalization(),
                    keras.layers.Dropout(0.2, seed=e),
                ]
            )
            for e in range(2)
        ]


LAYERS = {
    "bias and schedule": lambda: MoEBlock(
        4,
        8,
        router=Router(
            4, scoring="sigmoid", expert_bias=True, expert_bias_step=0.2
        ),
        load_balancing_weight=SCHEDULE,
        router_z_weight=0.1,
    ),
    "draws": lambda: MoEBlock(
        4,
        8,
        router=Router(4, jitter=0.3, noise_std=0.1, expert_dropout=0.3, seed=1),
        dropout=0.2,
        capacity_factor=1.0,
        seed=2,
    ),
    "relu": lambda: MoEBlock(
        4, 8, router=keras_moe.ReLURouter(4, l1_start=1.0)
    ),
    "encoder": lambda: keras_moe.TransformerEncoderBlock(
        2,
        MoEBlock(
            4,
            8,
            router=keras_moe.GShardRouter(
                4, expert_bias=True, expert_bias_step=0.2, seed=1
            ),
        ),
    ),
    "experts": lambda: MoEBlock(2, experts=normalized_experts(), top_k=1),
}


@keras.saving.register_keras_serializable(package="tests")
class Around(keras.layers.Layer):
    """A user's own layer that repeats its inner layer by `keras.remat`."""

    def __init__(self, layer, repeat, **kwargs):
        super().__init__(**kwargs)
        self.layer, self.repeat = layer, repeat

    def build(self, shape):
        self.layer.build(shape)

    def call(self, x, training=None):
        def run(x):
            # The second call reads what the first one wrote.
            return self.layer(
                self.layer(x, training=training), training=training
            )

        return (keras.remat(run) if self.repeat else run)(x)

    def compute_output_shape(self, shape):
        return shape


def trained(make, steps=2):
    """Return the losses, all variables after training, and the model."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(8, 4, D)).astype("float32")
    layer = make()
    model = keras.Sequential(
        [keras.Input((4, D)), keras.layers.Dense(D), layer]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    losses = model.fit(
        x, x, batch_size=8, epochs=steps, shuffle=False, verbose=0
    ).history["loss"]
    return losses, [to_numpy(v) for v in model.variables], model


def assert_equal(one, other):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_a_remat_scope_changes_no_number(name):
    def make():
        with keras.RematScope("full"):
            return LAYERS[name]()

    plain, repeated = trained(LAYERS[name]), trained(make)
    assert_equal(plain, repeated)
    block = keras_moe.find_blocks(repeated[2])[0]
    assert float(to_numpy(block.statistics.num_batches)[0]) == 2
    if block.scheduled_weight is not None:
        assert float(to_numpy(block.scheduled_weight.steps)[0]) == 2
    bias = getattr(block.router, "expert_bias_weight", None)
    if bias is not None:  # two steps of 0.2, up or down
        steps = to_numpy(bias) / 0.2
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
        assert np.abs(steps).max() < 2.1


@pytest.mark.parametrize("mode", ["activations", "larger_than"])
def test_other_modes_change_no_number(mode):
    def make():
        with keras.RematScope(mode, output_size_threshold=8):
            return LAYERS["draws"]()

    assert_equal(trained(LAYERS["draws"]), trained(make))


@pytest.mark.skipif(
    BACKEND != "torch",
    reason="JAX and TensorFlow return no state from a function they repeat",
)
@pytest.mark.parametrize("name", ["bias and schedule", "draws", "relu"])
@pytest.mark.parametrize("scope", [False, True], ids=["plain", "in a scope"])
def test_a_layer_inside_a_checkpoint_of_the_user(name, scope):
    """PyTorch repeats the call in the backward pass, after the writes."""

    def make(repeat):
        scoped = keras.RematScope("full" if repeat and scope else None)
        with scoped:
            layer = LAYERS[name]()
        return Around(layer, repeat)

    plain, repeated = trained(lambda: make(False)), trained(lambda: make(True))
    assert_equal(plain, repeated)
    block = keras_moe.find_blocks(repeated[2])[0]
    assert float(to_numpy(block.statistics.num_batches)[0]) == 4


@pytest.mark.skipif(
    BACKEND != "torch", reason="the reentrant kind is PyTorch's"
)
def test_a_reentrant_checkpoint_moves_the_bias_once():
    import torch

    def gradient(reentrant):
        keras.utils.set_random_seed(0)
        block = LAYERS["bias and schedule"]()
        x = torch.linspace(-1, 1, 8 * D).reshape(8, D).requires_grad_()

        def run(x):
            return block(x, training=True)

        if reentrant is None:
            y = run(x)
        else:
            y = torch.utils.checkpoint.checkpoint(
                run, x, use_reentrant=reentrant
            )
        (y**2).sum().backward()
        return x.grad, block.router.expert_bias_weight.value.detach()

    expected = gradient(None)
    for reentrant in (False, True):
        for one, other in zip(gradient(reentrant), expected, strict=True):
            np.testing.assert_allclose(
                to_numpy(one), to_numpy(other), atol=1e-6
            )


def test_mixed_precision():
    """PyTorch repeats a call outside of the casts that Keras puts around it."""
    keras.config.set_dtype_policy("mixed_bfloat16")

    def make():
        with keras.RematScope("full"):
            return LAYERS["bias and schedule"]()

    one, other = trained(LAYERS["bias and schedule"]), trained(make)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-2)


def models(scope):
    """Return one model per kind, with a mixture that is made in a scope."""
    inputs = keras.Input((D,))
    with keras.RematScope(scope):
        block = MoEBlock(4, 5, name="moe")
        around = Around(MoEBlock(4, 5, name="moe"), repeat=False)
        mixture = keras_moe.MixtureOfModels(
            [keras.layers.Dense(D), keras.layers.Dense(D)], top_k=1, name="moe"
        )
        whole = keras.Model(inputs, MoEBlock(4, 5, name="moe")(inputs))
    return {
        "block": keras.Model(inputs, block(inputs)),
        "own layer": keras.Model(inputs, around(inputs)),
        "models": keras.Model(inputs, mixture(inputs)),
        "whole model": whole,
    }


@pytest.mark.parametrize(
    "kind", ["block", "own layer", "models", "whole model"]
)
def test_the_routing_of_a_model_in_a_scope(kind, rng):
    """`routing_of` runs a model that was made in a scope.

    On TensorFlow and JAX, Keras itself does not run such a functional model,
    because its `training` argument is traced.
    """
    plain, repeated = models(None)[kind], models("full")[kind]
    repeated.set_weights(plain.get_weights())
    x = rng.normal(size=(9, D)).astype("float32")
    routing = keras_moe.routing_of(repeated, x, batch_size=4)
    expected = keras_moe.routing_of(plain, x, batch_size=4)
    assert [p.rsplit("/")[-1] for p in routing] == [
        p.rsplit("/")[-1] for p in expected
    ]
    for one, other in zip(routing.values(), expected.values(), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    layers = repeated._flatten_layers()
    assert not any("rematerialized_call" in x.__dict__ for x in layers)


def test_experts_in_a_scope_are_pruned_alike(rng):
    x = rng.normal(size=(9, D)).astype("float32")
    plain, repeated = models(None)["block"], models("full")["block"]
    repeated.set_weights(plain.get_weights())
    for one, other in zip(
        *(
            keras_moe.compress.prune_experts(
                model, 2, by="saliency", data=x
            ).get_weights()
            for model in (plain, repeated)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def distilled(model):
    ids = keras.Input((3,), dtype="int32")
    student = keras.Model(ids, keras.layers.Embedding(9, D, name="states")(ids))
    return keras_moe.compress.Distiller(
        student, model, alpha=0.0, hidden={"states": "moe"}
    )


@pytest.mark.parametrize(
    "wrap",
    [distilled, lambda m: keras_moe.training.FGM(m, "words")],
    ids=["teacher", "embedding"],
)
def test_wrappers_read_what_layers_in_a_scope_return(wrap, rng):
    ids = rng.integers(0, 9, (8, 3)).astype("int32")

    def loss(scope):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,), dtype="int32")
        with keras.RematScope(scope):
            embedding = keras.layers.Embedding(9, D, name="words")
            block = MoEBlock(4, 5, name="moe")
        model = wrap(keras.Model(inputs, block(embedding(inputs))))
        model.compile("sgd", "mse")
        y = np.ones((8, 3, D), "float32")
        return model.fit(ids, y, verbose=0).history["loss"]

    np.testing.assert_allclose(loss("full"), loss(None), rtol=1e-5)
