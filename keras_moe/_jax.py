"""All that the package uses of JAX's private API.

This includes its API for extensions, which changes without deprecation.
`tests/package/private_api/test_private_jax.py` asserts the effect of each name.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive, get_opaque_trace_state
from jax.interpreters import ad, batching, mlir


def trace_here() -> Any:
    """Return an object that stands for the trace that operations are added to.

    Two such objects are equal if they stand for the same trace, to which they
    hold a weak reference.
    """
    return get_opaque_trace_state()


def is_traced_here(value: Any) -> bool:
    """Return whether a value belongs to the trace operations are added to."""
    trace = getattr(value, "_trace", None)
    return trace is not None and trace is trace_here()._trace_ref()


def identity_of_reverse_mode(
    name: str, refuse: Callable[..., NoReturn]
) -> Callable[[jax.Array], jax.Array]:
    """Return an identity that can only be differentiated in reverse mode.

    Args:
        name: Name of its operation in a printed program.
        refuse: Function of any arguments that raises; called if a
            forward-mode derivative is computed or compiled.
    """
    identity = Primitive(name)
    identity.def_impl(lambda x: x)
    identity.def_abstract_eval(lambda x: x)
    batching.defvectorized(identity)
    mlir.register_lowering(identity, lambda context, x: [x])
    tangent_of = _reverse_only_tangent(f"{name}_tangent", refuse)

    def derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
        (x,), (tangent,) = primals, tangents
        return identity.bind(x), tangent_of.bind(tangent)

    ad.primitive_jvps[identity] = derivative
    return identity.bind


def _reverse_only_tangent(
    name: str, refuse: Callable[..., NoReturn]
) -> Primitive:
    """Return the operation that the identity applies to tangents.

    Reverse mode transposes it and never runs it.
    """
    tangent_of = Primitive(name)
    tangent_of.def_impl(refuse)
    tangent_of.def_abstract_eval(lambda x: x)
    ad.deflinear2(tangent_of, lambda cotangent, x: [cotangent])
    batching.primitive_batchers[tangent_of] = refuse
    mlir.register_lowering(tangent_of, refuse)
    return tangent_of
