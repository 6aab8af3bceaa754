"""TensorFlow: gradients written by hand that can be differentiated again."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_moe.types import Tensor


def with_gradient(
    function: Callable[..., tuple[Tensor, Sequence[Tensor]]],
    gradients: Callable[..., Sequence[Tensor]],
    *args: Tensor,
) -> Tensor:
    """Return the outputs of a function with a gradient that is given.

    No tape records what `function` does. With two tapes TensorFlow would
    build the gradient of its loops, which have none, as soon as they are
    built.

    Args:
        function: `function(*args)`, returns its outputs and what it keeps for
            the gradient. It and `gradients` capture no tensors: those of one
            graph are out of scope in the graph of a second derivative.
        gradients: `gradients(args, kept, *d_outputs)`, those of the first of
            the arguments; the others have none.
        *args: tensors.
    """

    @tf.custom_gradient
    def run(*args):
        own = [tf.identity(x) for x in args]  # tensors of this graph
        outputs, kept = function(*map(tf.stop_gradient, own))
        # Else an eager tape looks for second-order gradients through them.
        kept = [tf.stop_gradient(x) for x in kept]

        def backward(*d_outputs):
            found = gradients(own, kept, *d_outputs)
            return *found, *[None] * (len(own) - len(found))

        return outputs, backward

    return run(*args)


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
        x, banks: its arguments.
        dy: the gradient of its output.
        cotangents: those of the gradients of `x` and of each bank.

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
        # A bias that is gathered has a sparse one.
        found = [tf.convert_to_tensor(g) for g in found]
    return outer.gradient(
        found,
        sources,
        output_gradients=cotangents,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
