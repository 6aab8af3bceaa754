"""`kernels.call_part` has all effects of calling a block's part."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import ops

from keras_moe import Expert, MoEBlock, Router, kernels
from keras_moe.model_surgery.observe import calling, watching

E, D = 4, 8


class Owner(keras.layers.Layer):
    """A layer that calls its part by `kernels.call_part`."""

    def __init__(self, part, **kwargs):
        super().__init__(**kwargs)
        self.part = part

    def build(self, input_shape):
        self.part.build(input_shape)

    def call(self, x):
        return kernels.call_part(self, self.part, x)


def test_an_activity_regularizer_of_the_experts_adds_its_loss(rng):
    """The loss is the L2 of the outputs, divided by the number of tokens."""
    experts = Expert(16, 1, activity_regularizer=keras.regularizers.L2(0.1))
    block = MoEBlock(1, top_k=1, experts=experts, load_balancing_weight=0.0)
    x = ops.convert_to_tensor(draw(rng, 5, D))
    y = block(x, training=True)
    (loss,) = block.losses
    rows = experts(x)
    wanted = 0.1 * float(to_numpy(ops.sum(ops.square(rows)))) / 5
    assert float(to_numpy(loss)) == pytest.approx(wanted, rel=1e-5)
    assert tuple(y.shape) == (5, D)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float32"])
def test_a_part_computes_in_its_own_dtype(rng, policy):
    class Records(keras.layers.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight(input_shape[-1:])

        def call(self, x):
            self.seen = x.dtype, (self.weight + 0).dtype
            return x * ops.cast(self.weight, x.dtype)

    part = Records(dtype=policy)
    Owner(part, dtype="float32")(ops.ones((3, D), "float32"))
    seen = {keras.backend.standardize_dtype(dtype) for dtype in part.seen}
    assert seen == {keras.DTypePolicy(policy).compute_dtype}


@pytest.mark.skipif(BACKEND != "torch", reason="hooks are PyTorch's")
def test_hooks_of_pytorch_run_for_router_and_experts(rng):
    block = MoEBlock(E, 16)
    x = ops.convert_to_tensor(draw(rng, 6, D))
    plain = to_numpy(block(x))
    seen = []
    for part in (block.router, block.experts):
        part.register_forward_hook(lambda layer, *_: seen.append(layer))
    assert np.array_equal(to_numpy(block(x)), plain)
    assert seen == [block.router, block.experts]


@pytest.mark.skipif(BACKEND != "torch", reason="others make full calls")
def test_a_plain_part_is_called_directly(monkeypatch, rng):
    block = MoEBlock(E, 16)
    x = ops.convert_to_tensor(draw(rng, 6, D))
    block(x)
    called = []
    for kind in (Router, Expert):
        full = kind.__call__
        monkeypatch.setattr(
            kind,
            "__call__",
            lambda self, *a, full=full, **k: (
                called.append(1) or full(self, *a, **k)
            ),
        )
    block(x)
    assert not called
    block.experts.quantize("int8")
    block(x)
    assert called == [1]


def test_nested_replacements_of_a_call_are_undone(rng):
    """Each replacement ends with its scope, and an assigned `call` stays."""
    layer = keras.layers.Dense(1)
    x = ops.ones((1, 2))
    layer(x)
    layer.call = own = lambda x: x * 3.0
    found = []

    def call():
        found.append(float(to_numpy(layer(x))[0, 0]))

    with calling(layer, lambda x: x * 5.0):
        with watching([layer]) as seen:
            call()
        with calling(layer, lambda x: x * 7.0), watching([layer]) as other:
            call()
        call()
    call()
    assert found == [5, 7, 5, 3] and layer.call is own
    outputs = [float(to_numpy(c.outputs)[0, 0]) for c in seen[id(layer)]]
    outputs += [float(to_numpy(c.outputs)[0, 0]) for c in other[id(layer)]]
    assert outputs == [5, 7]
    del layer.call
    assert "call" not in vars(layer)
