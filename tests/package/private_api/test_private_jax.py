"""Check the effect of each private name of JAX.

If a test fails with another version of JAX, change the function of
`keras_moe/_jax.py`. `test_private_names.py` compares the names.
"""

import numpy as np
import pytest
from backend import BACKEND
from private_names import of

if BACKEND != "jax":
    pytest.skip("private names of JAX", allow_module_level=True)

import jax

from keras_moe import _jax


@of("get_opaque_trace_state", "_trace", "_trace_ref")
def test_a_value_belongs_to_its_trace():
    def outer(x):
        state = _jax.trace_here()
        assert _jax.is_traced_here(x)
        assert state == _jax.trace_here() != eager

        def inner(y):
            assert state != _jax.trace_here()
            assert _jax.is_traced_here(y) and not _jax.is_traced_here(x)
            return x * y

        return jax.jit(inner)(x)

    eager = _jax.trace_here()
    x = jax.numpy.ones(2)
    assert not _jax.is_traced_here(x)
    jax.jit(outer)(x)
    assert eager == _jax.trace_here()


@of("Primitive", "ad", "batching", "mlir")
def test_an_identity_has_no_forward_mode():
    def refuse(*args, **kwargs):
        raise NotImplementedError("reverse mode only")

    same = _jax.identity_of_reverse_mode("keras_moe_test", refuse)
    x = jax.numpy.array([1.0, 2.0])
    for wrap in (lambda f: f, jax.jit, jax.vmap):
        np.testing.assert_array_equal(wrap(same)(x), x)
        slope = wrap(jax.grad(lambda x: (same(x) ** 2).sum()))
        np.testing.assert_array_equal(slope(x), 2 * x)
        with pytest.raises(NotImplementedError, match="reverse mode only"):
            jax.jvp(wrap(same), (x,), (x,))
