"""Test the errors of functions and arguments of other backends."""

import keras
import pytest
from backend import BACKEND, draw

from keras_moe import MoEBlock, distribution

ELSEWHERE = {
    "jax": ("data_parallel", "shard_experts", "gather_experts"),
    "tensorflow": ("expert_parallel", "shard_experts", "gather_experts"),
    "torch": ("expert_parallel",),
}
REMEDIES = {
    "data_parallel": r"expert_parallel\(\)",
    "shard_experts": "expert_parallel|tf.distribute",
    "gather_experts": "expert_parallel|tf.distribute",
    "expert_parallel": r"KERAS_BACKEND=jax; or, .*data_parallel\(",
}


@pytest.mark.parametrize("name", ELSEWHERE[BACKEND])
def test_a_function_of_another_backend(name):
    arguments = () if name == "expert_parallel" else (keras.Sequential(),)
    with pytest.raises(RuntimeError, match=REMEDIES[name]) as raised:
        getattr(distribution, name)(*arguments)
    assert f"`{name}`" in str(raised.value)
    assert BACKEND in str(raised.value)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the error is TensorFlow's")
def test_weights_are_whole_on_tensorflow():
    with pytest.raises(ValueError, match="`fully_sharded` must be False"):
        distribution.data_parallel(keras.Sequential(), fully_sharded=True)


@pytest.mark.skipif(BACKEND == "jax", reason="keras.distribution is JAX's")
def test_a_distribution_that_would_be_ignored(rng):
    mesh = keras.distribution.DeviceMesh((1,), ("batch",), ["cpu:0"])
    with keras.distribution.DataParallel(device_mesh=mesh).scope():
        with pytest.raises(RuntimeError, match=f"KERAS_BACKEND={BACKEND}"):
            MoEBlock(2, 4)(draw(rng, 3, 5))
    assert MoEBlock(2, 4)(draw(rng, 3, 5)).shape == (3, 5)
