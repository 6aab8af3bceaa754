"""Check every layer and router inside a user's own layer.

Keras runs `call` of such a layer on symbolic inputs to find the shape of its
outputs. The batch size and the length are unknown, or symbolic on JAX. If a
layer of this package is called on an `Input` directly, `compute_output_spec`
returns its shape, and Keras does not run its `call`.
"""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from cases import cases
from keras import layers, ops
from own_layers import EVERY_LAYER, WITHOUT_MASK, Residual, Subclassed
from router_zoo import (
    ROUTERS,
    D,
    E,
    router_cases,
    router_inputs_of,
    symbolic_router_inputs,
)
from zoo import WIDTH

import keras_moe
from keras_moe import kernels

SOME = ("MoEBlock full", "ExpertChoiceRouter")


def arrays(function, layer, *inputs):
    """Return the outputs of a function of the layer (one program on JAX)."""
    run = kernels.compiled(function, layer.variables)
    return [to_numpy(y) for y in run(*map(ops.convert_to_tensor, inputs))]


@pytest.mark.parametrize("name", EVERY_LAYER)
def test_shape_of_an_own_layer(name):
    """The shape is found in training and with a mask, too; no state changes."""
    own = Residual(EVERY_LAYER[name]())
    inputs = keras.Input((None, WIDTH))
    assert own(inputs).shape == (None, None, WIDTH)
    before = [to_numpy(v) for v in own.variables]
    if name not in WITHOUT_MASK:
        inputs = layers.Masking()(inputs)
    assert own(inputs, training=True).shape == (None, None, WIDTH)
    for old, variable in zip(before, own.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), old)


@pytest.mark.parametrize("name", router_cases())
def test_shape_of_an_own_layer_by_router(name):
    router = ROUTERS[name]()
    own = Residual(keras_moe.MoEBlock(E, 12, router=router))
    ids = symbolic_router_inputs(router, None)
    for training in (False, True):
        outputs = own(keras.Input((None, D)), ids=ids, training=training)
        assert outputs.shape == (None, None, D)


@pytest.mark.parametrize("name", cases(EVERY_LAYER, everywhere=SOME))
def test_values_of_an_own_layer(name, rng):
    layer = EVERY_LAYER[name]()
    own = Residual(layer)
    own(keras.Input((None, WIDTH)))
    x = draw(rng, 3, 7, WIDTH)
    got, direct = arrays(lambda x: (own(x), layer(x)), own, x)
    np.testing.assert_allclose(got, x + direct, atol=1e-5)


@pytest.mark.parametrize("name", cases(ROUTERS, everywhere=SOME))
def test_values_of_an_own_layer_by_router(name, rng):
    block = keras_moe.MoEBlock(E, 12, router=ROUTERS[name]())
    own = Residual(block)
    own(keras.Input((None, D)), symbolic_router_inputs(block.router, None))
    x = draw(rng, 3, 7, D)
    ids = router_inputs_of(block.router, (3, 7))
    ids = [] if ids is None else [ids]
    got, direct = arrays(
        lambda x, *ids: (
            own(x, *ids),
            block(x, router_inputs=ids[0] if ids else None),
        ),
        own,
        x,
        *ids,
    )
    np.testing.assert_allclose(got, x + direct, atol=1e-5)


def test_subclassed_model_on_an_input_trains(rng):
    inner = Subclassed()
    inputs = keras.Input((None, WIDTH))
    outputs = inner(inputs)
    assert outputs.shape == (None, 1)
    spec = inner.compute_output_spec(keras.KerasTensor((None, None, WIDTH)))
    assert spec.shape == (None, 1)
    model = keras.Model(inputs, outputs)
    x = draw(rng, 32, 5, WIDTH)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    history = model.fit(x, x[:, :, :1].sum(1), epochs=4, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
