"""What a backend provides to layers: see `kernels/layer_hooks.py`."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import keras

from keras_moe.types import Tensor


class LayerHooks(Protocol):
    """Handle calls, losses, state, and Adam steps of layers."""

    def keep_losses_apart(self, layer: keras.layers.Layer) -> None:
        """Give each replica of a process its own list of a layer's losses.

        Under a `tf.distribute` strategy the replicas of a process trace a
        step as threads that take turns at every reduction and share the
        attributes of a layer. One attribute is the list behind `add_loss`: a
        replica that enters the model clears the losses that another has added
        before, whose gradient is then lost. On other backends, and in a second
        call, nothing happens.

        Args:
            layer: Layer that calls `add_loss`.
        """

    def needs_a_full_call(
        self, owner: keras.layers.Layer, layer: keras.layers.Layer
    ) -> bool:
        """Return whether `layer(...)` does more than `layer.call(...)`.

        Args:
            owner: Layer inside whose call `layer` is called.
            layer: Layer to call.
        """

    def is_recomputing(self) -> bool:
        """Return whether a forward pass is repeated for its gradients.

        On PyTorch, a checkpoint repeats it inside `backward`. Whatever a layer
        writes and adds was written and added the first time. JAX and
        TensorFlow repeat operations, not calls.
        """

    def first_value(self, read: Callable[[], Tensor]) -> Tensor:
        """Return state that decides what a forward pass computes.

        If the pass is repeated for its gradients, this is the value that the
        first run read, even if the state has changed since.

        Args:
            read: Function that returns the tensor. It may also advance the
                state, as a seed generator does: the repetition does not call
                it again.
        """

    def may_be_repeated(self) -> bool:
        """Return whether this runs inside a checkpoint of the user's."""

    def repeatable(self, pure: bool) -> contextlib.AbstractContextManager[None]:
        """Declare that what runs inside can be repeated without precautions.

        Args:
            pure: bool. Whether all state inside enters and leaves as values.
        """

    def settle(self, variable: keras.Variable) -> None:
        """Move a bank of weights to memory that is read fastest.

        Only PyTorch on CPU moves anything.

        Args:
            variable: A weight that was just made. Its values and identity stay
                the same.
        """

    def adam_step(
        self,
        variable: keras.Variable,
        gradient: Tensor,
        slots: Sequence[keras.Variable],
        step_size: Callable[[], Tensor],
        betas: tuple[float, float],
        epsilon: float,
    ) -> bool:
        """Update a variable and its slots in one pass, if the backend can.

        Args:
            variable: The weight.
            gradient: Tensor like `variable`.
            slots: The first and second moment, and with AMSGrad the largest
                second moment.
            step_size: Function that returns a scalar, which includes the bias
                corrections. It is called only if the step is taken.
            betas: Decay rates of the two moments.
            epsilon: float, added to the root.

        Returns:
            Whether the step was taken; if not, nothing has changed.
        """
