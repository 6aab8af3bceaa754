"""Check the effect of each private name of TensorFlow.

If a test fails with another version of TensorFlow, change the function of
`keras_moe/_tensorflow.py`. `test_private_names.py` compares the names.
"""

import numpy as np
import pytest
from backend import BACKEND
from private_names import of

if BACKEND != "tensorflow":
    pytest.skip("private names of TensorFlow", allow_module_level=True)

import tensorflow as tf

from keras_moe import _tensorflow


@of("_in_multi_worker_mode")
def test_one_process_does_not_have_several_workers():
    """`test_distribution_tensorflow.py` trains with several workers."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert _tensorflow.has_several_workers(strategy) is False


@of("record")
def test_a_tape_records():
    assert not _tensorflow.is_recorded()
    with tf.GradientTape() as tape:
        assert _tensorflow.is_recorded()
        with tape.stop_recording():
            assert not _tensorflow.is_recorded()


@of("forwardprop_util")
def test_a_tangent_is_detected():
    x = tf.ones(1)
    assert not _tensorflow.in_forward_mode(x)
    with tf.autodiff.ForwardAccumulator(x, tf.ones(1)):
        assert _tensorflow.in_forward_mode(x)


@of("control_flow_util", "xla")
def test_xla_is_detected_and_has_slices():
    def shifted(x, start):
        inside = _tensorflow.inside_xla()
        if not inside:
            return x, inside
        part = _tensorflow.xla_slice(x, start[None], [2])
        return _tensorflow.xla_update_slice(x, 10 * part, start[None]), inside

    x, start = tf.constant([1.0, 2.0, 3.0]), tf.constant(1)
    for compiled, expected in [(False, [1, 2, 3]), (True, [1, 20, 30])]:
        run = tf.function(shifted, jit_compile=compiled)
        y, inside = run(x, start)
        assert bool(inside) is compiled
        np.testing.assert_array_equal(y, expected)


@of("_noinline")
def test_a_function_is_marked_as_not_inlined():
    @tf.function(experimental_attributes=_tensorflow.NOT_INLINED)
    def double(x):
        return 2 * x

    found = double.get_concrete_function(tf.TensorSpec((), tf.float32))
    assert found.function_def.attr["_noinline"].b
