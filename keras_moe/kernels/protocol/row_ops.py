"""The row operations that a backend provides: see `kernels/row_ops.py`."""

from collections.abc import Callable
from typing import Protocol

from keras_moe.types import Tensor


class RowOps(Protocol):
    """Rank, count, sort, gather, and sum rows.

    T tokens, E experts or groups, K top_k, P routed pairs (rows).
    """

    def top_k_index(self, scores: Tensor, top_k: int) -> Tensor:
        """See `row_ops.top_k_index`; `scores` is a tensor."""

    def take_columns(self, table: Tensor, columns: Tensor) -> Tensor:
        """Return each row's entries at its own columns; differentiable.

        Args:
            table: `(T, E)`.
            columns: int `(T, K)`, in 0 ... E - 1.

        Returns:
            `(T, K)`, in the dtype of `table`.
        """

    def take_rows(self, table: Tensor, rows: Tensor) -> Tensor:
        """Return entries of the first axis.

        Its gradient is a slow scatter. Inside a `linear_map` it is not
        differentiated.

        Args:
            table: `(T, ...)`.
            rows: int32 `(P,)`, in 0 ... T - 1.

        Returns:
            `(P, ...)`, in the dtype of `table`.
        """

    def row_of_each(self, table: Tensor) -> Tensor:
        """Return the row of each entry of a table, read row by row.

        Args:
            table: `(T, K)`.

        Returns:
            int32 `(T * K,)`: K times 0, K times 1, and so on.
        """

    def linear_map(
        self,
        forward: Callable[..., Tensor],
        transpose: Callable[..., Tensor],
        x: Tensor,
        *index: Tensor,
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
        """See `row_ops.gathered_sum`; None if it must use other functions."""

    def inverse_permutation(self, order: Tensor) -> Tensor:
        """See `row_ops.inverse_permutation`; `order` is a tensor."""

    def group_sizes_of(self, expert_index: Tensor, num_experts: int) -> Tensor:
        """See `row_ops.group_sizes_of`; `expert_index` is a tensor."""

    def sort_few_groups(
        self, group_index: Tensor, num_groups: int
    ) -> tuple[Tensor, ...] | None:
        """See `row_ops.sort_groups`; None if it must use other functions."""

    def map_entries(
        self,
        function: Callable[[tuple[Tensor, ...]], Tensor],
        tensors: tuple[Tensor, ...],
    ) -> Tensor:
        """Apply a function to each entry of the first axis of tensors.

        Args:
            function: Function from a tuple of entries, one of each tensor, to
                one tensor.
            tensors: Tensors with first axes of the same length.

        Returns:
            The results, stacked.
        """
