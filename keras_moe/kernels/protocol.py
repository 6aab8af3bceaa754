"""What a backend provides to `kernels`: the one list of it.

`kernels/jax/`, `kernels/tensorflow/`, and `kernels/torch/` each provide all of
it from their `__init__.py`. What a backend need not write itself, it imports
there from `generic.py`, which is in plain `keras.ops`.

T tokens, D width, E experts or groups, K top_k, P routed pairs (rows).
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras

from keras_moe.kernels.exchange import Bank, Pairs
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights
from keras_moe.types import Activation, Tensor


class Formulation(Protocol):
    """One way to compute the grouped kernels: a module.

    `kernels.grouped_matmul` and `kernels.grouped_ffn` say what both return.
    """

    def grouped_matmul(
        self, x: Tensor, kernel: Tensor, group_sizes: Tensor
    ) -> Tensor: ...

    def grouped_ffn(
        self,
        x: Tensor,
        weights: FFNWeights,
        group_sizes: Tensor,
        activation: Activation,
        remat: bool = False,
    ) -> Tensor: ...


class QuantizedFormulation(Protocol):
    """The same for kernels of 8 or 4 bits."""

    def grouped_matmul(
        self, x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
    ) -> Tensor: ...

    def grouped_ffn(
        self,
        x: Tensor,
        weights: FFNWeights,
        group_sizes: Tensor,
        activation: Activation,
    ) -> Tensor: ...


class Backend(Protocol):
    """The functions of a backend's folder.

    Attributes:
        FORMULATIONS: the formulations by their names, without the reference.
        light_ops: `keras.ops`, or what has fewer looks before each operation,
            for tensors of the running backend in what every call runs.
    """

    @property
    def FORMULATIONS(self) -> Mapping[str, Formulation]: ...

    @property
    def light_ops(self) -> Any: ...

    # Which formulation computes.

    def formulation_for(self, x: Tensor, num_groups: int) -> str:
        """Return the name of the formulation for rows `x` `(P, D)`, by the
        device and by sizes that are known when the call is traced."""

    def quantized_formulation(self) -> QuantizedFormulation:
        """Return the module for kernels of 8 or 4 bits. Not each formulation
        that `kernels.use` forces can multiply by them."""

    # Rows.

    def top_k_index(self, scores: Tensor, top_k: int) -> Tensor:
        """See `row_ops.top_k_index`; `scores` is a tensor."""

    def take_columns(self, table: Tensor, columns: Tensor) -> Tensor:
        """Return each row's entries at its own columns; differentiable.

        Args:
            table: `(T, E)`.
            columns: int `(T, K)`, 0 ... E - 1.

        Returns:
            `(T, K)`, the dtype of `table`.
        """

    def take_rows(self, table: Tensor, rows: Tensor) -> Tensor:
        """Return entries of the first axis.

        Its gradient, if it is asked for, is a slow scatter; inside a
        `linear_map` it is not asked for.

        Args:
            table: `(T, ...)`.
            rows: int32 `(P,)`, 0 ... T - 1.

        Returns:
            `(P, ...)`, the dtype of `table`.
        """

    def row_of_each(self, table: Tensor) -> Tensor:
        """Return the row that each entry is in, of a table read row by row.

        Args:
            table: `(T, K)`.

        Returns:
            int32 `(T * K,)`: K times 0, K times 1, and so on.
        """

    def linear_map(
        self, forward: Callable, transpose: Callable, x: Tensor, *index: Tensor
    ) -> Tensor:
        """See `row_ops.linear_map`."""

    def gathered_sum(
        self,
        rows: Tensor,
        place: Tensor,
        order: Tensor,
        num_terms: int,
        weights: Tensor | None = None,
    ) -> Tensor | None:
        """See `row_ops.gathered_sum`; None where that composes it."""

    def inverse_permutation(self, order: Tensor) -> Tensor:
        """See `row_ops.inverse_permutation`; `order` is a tensor."""

    def group_sizes_of(self, expert_index: Tensor, num_experts: int) -> Tensor:
        """See `row_ops.group_sizes_of`; `expert_index` is a tensor."""

    def sort_few_groups(
        self, group_index: Tensor, num_groups: int
    ) -> tuple[Tensor, ...] | None:
        """See `row_ops.sort_groups`; None where that composes it."""

    def map_entries(
        self,
        function: Callable[[tuple[Tensor, ...]], Tensor],
        tensors: tuple,
    ) -> Tensor:
        """Apply a function to each entry of the first axis of tensors.

        Args:
            function: from a tuple of entries to one tensor.
            tensors: as many entries each.

        Returns:
            What the function returns, stacked.
        """

    # Sizes, and what is known when a program is traced.

    def shapes_known(self, x: Tensor) -> str:
        """Return what a program that is traced now must know of shapes.

        `"at run time"`: nothing, a slice may be as long as a value says.
        `"sizes"`: all, and it can choose between programs. `"whole"`: all,
        and the sizes of its inputs are not there to choose by.

        Args:
            x: any tensor of the program.
        """

    def shape_of_count(self, count: Tensor, otherwise: int) -> int | Tensor:
        """Return a count as a number that a shape may depend on.

        Args:
            count: int32 scalar.
            otherwise: what stands in if shapes are fixed before values are
                known (JAX, XLA, an export), or if reading a value would make
                the host wait for the device.
        """

    def smaller_size(self, one: Any, other: Any) -> Any:
        """Return the smaller of two sizes, of which one is no int."""

    def output_shapes(self, function: Callable, *args: Any) -> Any:
        """Return what a function would return, without computing it.

        Args:
            function: of nests of tensors, returns a nest of tensors.
            *args: of the function.

        Returns:
            The nest, with objects that have a `shape` and a `dtype`.

        Raises:
            NotImplementedError: on another backend than JAX.
        """

    def known_int(self, value: Tensor) -> int | None:
        """See `row_ops.known_int`; `value` is a tensor."""

    def require(self, valid: Tensor, message: str) -> Tensor:
        """Raise unless all of `valid` is True; return it.

        A program that JAX or XLA compiles cannot raise, and on CUDA a look at
        the values would stop the queue: there nothing is checked, and the
        caller must make sure that a wrong value shows.

        Args:
            valid: bool, any shape.
            message: the error's.

        Raises:
            ValueError: on values; tf.errors.InvalidArgumentError in a graph.
        """

    def varying_alike(self, values: Any, *others: Any) -> Any:
        """Return `values` with the type of what a loop or branch computes.

        Inside a `jax.shard_map` zeros that a program starts from differ in
        type from what it computes of a device's rows. Elsewhere nothing
        changes.

        Args:
            values: pytree of tensors, which are returned.
            *others: pytrees of tensors that the results depend on.
        """

    # Whole programs.

    def compiled(
        self, function: Callable, variables: Sequence, written: Sequence = ()
    ) -> Callable:
        """See `programs.compiled`."""

    def value_and_gradient(
        self, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `programs.value_and_gradient`; `x` is a tensor."""

    # What a backend does to layers and variables: see `layer_hooks.py`.

    def keep_losses_apart(self, layer: keras.layers.Layer) -> None:
        """Give each replica of a process its own list of a layer's losses.

        Under a `tf.distribute` strategy the replicas of a process trace a
        step as threads that take turns at every reduction, and share what
        stands on a layer. In Keras 3.15 that is the list behind `add_loss`: a
        replica that enters the model clears what another has added before,
        and the gradient of it is lost. Elsewhere nothing happens, nor a
        second time.

        Args:
            layer: one that calls `add_loss`.
        """

    def needs_a_full_call(
        self, owner: keras.layers.Layer, layer: keras.layers.Layer
    ) -> bool:
        """Return whether `layer(...)` does more than `layer.call(...)` inside
        a call of its owner."""

    def is_recomputing(self) -> bool:
        """Return whether a forward pass is repeated for its gradients.

        On PyTorch, a checkpoint repeats it inside `backward`. What a layer
        writes and adds was written and added the first time. JAX and
        TensorFlow repeat operations, not calls.
        """

    def first_value(self, read: Callable[[], Tensor]) -> Tensor:
        """Return state by which a forward pass decides.

        When the pass is repeated for its gradients, the value that the first
        run read is returned, though the state has moved since.

        Args:
            read: returns the tensor. It may also move the state on, as a seed
                generator does: it is not called again.
        """

    def may_be_repeated(self) -> bool:
        """Return whether this runs inside a checkpoint that is not ours."""

    def repeatable(self, pure: bool) -> contextlib.AbstractContextManager[None]:
        """Declare that what runs inside can be repeated without any care.

        Args:
            pure: whether all state comes in and goes out as values there.
        """

    def trace_here(self) -> object:
        """Return what names the function or graph that is traced now.

        Returns:
            Something that equals another call's while the same is traced;
            always None on PyTorch, which traces nothing that a value could
            not leave.
        """

    def is_traced_here(self, value: Tensor) -> bool:
        """Return whether a value belongs to what is traced now, as an
        argument of a traced function does."""

    def writes_leave_traces(self) -> bool:
        """Return whether variables may be written inside any trace.

        On TensorFlow a graph writes; on JAX the value itself has to come out.
        """

    def outside_of_traces(self) -> contextlib.AbstractContextManager[Any]:
        """Return the scope in which a constant may be made for any trace."""

    def settle(self, variable: keras.Variable) -> None:
        """Put a bank of weights where it is read fastest, on PyTorch on CPU.

        Args:
            variable: a weight just made; values and identity stay.
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
        """Update a variable and its slots in one pass, where there is one.

        Args:
            variable: a weight.
            gradient: like it.
            slots: first and second moment; under AMSGrad the largest second
                one.
            step_size: returns a scalar, with the corrections of bias; called
                only where it is needed.
            betas: of the moments.
            epsilon: beside the root.

        Returns:
            Whether it did; if not, nothing has changed.
        """

    # Several replicas and devices: see `replicas.py` and `exchange.py`.

    def num_replicas(self) -> int:
        """Return how many replicas take the current step together."""

    def sum_over_replicas(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the replicas of a data-parallel
        step.

        Args:
            x: any shape, the same on each replica. The sum has no gradient on
                PyTorch.
        """

    def is_spread(self, shard: Any, num_rows: int | Tensor) -> bool:
        """Return whether tokens or experts lie on more than one device.

        A program of symbolic shapes on JAX is traced for its shapes, or
        exported; it is one device's, since the exchange needs a number of
        rows.

        Args:
            shard: of a bank, an `ExpertShard` or None, which decides on
                backends other than JAX; there `keras.distribution` does.
            num_rows: T, a number or what the trace has instead.
        """

    def num_token_shards(self, bank: Bank) -> int:
        """Return in how many equal parts, in order, a program's tokens lie."""

    def mix_across(
        self,
        mix: Callable,
        bank: Bank,
        rows: Tensor,
        pairs: Pairs,
        pairs_per_token: int | None,
        most_rows: int | Tensor | None = None,
    ) -> Tensor:
        """Dispatch, run the experts wherever they are, and combine.

        Args:
            mix: `mix(send, rows, pairs)`: sorts pairs by expert, gives the
                rows `(P, W)`, each expert's count `(E,)` and the order of the
                pairs to `send`, combines what it returns to `(T, W')`.
            bank: the experts.
            rows: `(T, W)`.
            pairs: of these rows.
            pairs_per_token: K where the pairs of token t stand at
                `t * K ...`.
            most_rows: C, where no expert gets more pairs of one token shard.

        Returns:
            `(T, W')`.
        """
