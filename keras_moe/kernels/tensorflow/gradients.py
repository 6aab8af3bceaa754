"""TensorFlow: hand-written gradients that can be differentiated again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from keras_moe.types import Tensor

Outputs: TypeAlias = tuple[Any, Sequence[Tensor]]
"""A tensor or tensors, and the tensors that are kept for their gradient."""


def with_gradient(
    function: Callable[..., Outputs],
    gradients: Callable[..., Sequence[Tensor]],
    *args: Tensor,
) -> Any:
    """Return the outputs of a function with a given gradient.

    No tape records the operations of `function`. With two tapes TensorFlow
    would otherwise build the gradient of its loops, which have none, together
    with the loops.

    Args:
        function: `function(*args)`. It returns its outputs and the tensors
            that it keeps for the gradient. It and `gradients` must not capture
            tensors: those of one graph are out of scope in the graph of a
            second derivative.
        gradients: `gradients(args, kept, *d_outputs)`. It returns the
            gradients of the first arguments; the others have none.
        *args: Tensors.
    """

    def run(*args: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        own = [tf.identity(x) for x in args]  # tensors of this graph
        outputs, kept = function(*map(tf.stop_gradient, own))
        # Otherwise an eager tape searches for second derivatives through them.
        kept = [tf.stop_gradient(x) for x in kept]

        def backward(*d_outputs: Tensor) -> tuple[Tensor | None, ...]:
            found = gradients(own, kept, *d_outputs)
            return *found, *[None] * (len(own) - len(found))

        return outputs, backward

    return tf.custom_gradient(run)(*args)


def gradients_of(
    compose: Callable[..., Tensor],
    x: Tensor,
    banks: Sequence[Tensor],
    dy: Tensor,
    cotangents: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Return the gradients of the gradients of a composition.

    Args:
        compose: `compose(x, banks)`, made of operations that TensorFlow
            differentiates twice.
        x, banks: Its arguments.
        dy: The gradient of its output.
        cotangents: The cotangents of the gradients of `x` and of each bank.

    Returns:
        The gradients of `x`, of each bank, and of `dy`.
    """
    sources = [x, *banks, dy]
    with tf.GradientTape() as outer:
        outer.watch(sources)
        with tf.GradientTape() as inner:
            inner.watch([x, *banks])
            y = compose(x, banks)
        found = inner.gradient(y, [x, *banks], output_gradients=dy)
        # The gradient of a bias that is gathered is sparse.
        found = [tf.convert_to_tensor(g) for g in found]
    second: list[Tensor] = outer.gradient(
        found,
        sources,
        output_gradients=cotangents,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return second
