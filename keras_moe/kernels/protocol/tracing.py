"""What a backend provides about shapes, values, and programs it traces."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras

from keras_moe.types import Tensor


class Tracing(Protocol):
    """Read what is known during a trace, and trace whole programs."""

    # Sizes and values.

    def shapes_known(self, x: Tensor) -> str:
        """Return what must be known about shapes in the present trace.

        Args:
            x: Any tensor of the program.

        Returns:
            `"at run time"` if a slice may have a length that is data.
            `"sizes"` if all shapes are static and the program can branch by
            values. `"whole"` if all shapes are static, but the program keeps
            no branches or its number of rows is still unknown.
        """

    def shape_of_count(self, count: Tensor, otherwise: int) -> int | Tensor:
        """Return a count as a number that a shape may depend on.

        Args:
            count: int32 scalar.
            otherwise: The number to return if shapes are fixed before values
                are known (JAX, XLA, an export), or if reading a value would
                make the host wait for the device.
        """

    def smaller_size(self, one: Any, other: Any) -> Any:
        """Return the smaller of two sizes that are not both int."""

    def output_shapes(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the shapes of a function's outputs without computing them.

        Args:
            function: Function of nests of tensors that returns a nest of
                tensors.
            *args: Arguments of `function`.

        Returns:
            The nest, with objects that have a `shape` and a `dtype`.

        Raises:
            NotImplementedError: If the backend is not JAX.
        """

    def known_int(self, value: Tensor) -> int | None:
        """See `row_ops.known_int`; `value` is a tensor."""

    def require(self, valid: Tensor, message: str) -> Tensor:
        """Raise unless all of `valid` is True; return it.

        A program that JAX or XLA compiles cannot raise, and on CUDA reading
        the values would make the host wait. There nothing is checked, and the
        caller must make sure that a wrong value shows in the outputs.

        Args:
            valid: bool, any shape.
            message: The message of the error.

        Raises:
            ValueError: If a value is False and is known.
            tf.errors.InvalidArgumentError: If a value is False in a graph of
                TensorFlow, when the graph runs.
        """

    def varying_alike(self, values: Any, *others: Any) -> Any:
        """Return `values` with the type that a loop or branch computes.

        Inside a `jax.shard_map`, zeros that a program starts from differ in
        type from what it computes from a device's rows. On other backends and
        outside of it nothing changes.

        Args:
            values: Pytree of tensors, which are returned.
            *others: Pytrees of tensors that the results depend on.
        """

    # Whole programs.

    def compiled(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
        written: Sequence[keras.Variable] = (),
    ) -> Callable[..., Any]:
        """See `programs.compiled`."""

    def value_and_gradient(
        self, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `programs.value_and_gradient`; `x` is a tensor."""

    # The trace that operations are added to.

    def trace_here(self) -> object:
        """Return an object that stands for the function that is traced now.

        Returns:
            An object that equals another call's result if both calls are in
            the same trace. Always None on PyTorch, where values may leave
            every trace.
        """

    def is_traced_here(self, value: Tensor) -> bool:
        """Return whether a value belongs to what is traced now.

        The arguments of a traced function do.
        """

    def writes_leave_traces(self) -> bool:
        """Return whether variables may be written inside every trace.

        A graph of TensorFlow writes; a function that JAX traces must return
        the value.
        """

    def outside_of_traces(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which constants for every trace are made."""
