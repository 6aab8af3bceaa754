"""What a backend provides to exchange tensors between devices.

See `kernels/replicas.py` and `kernels/exchange.py`.
"""

from typing import Protocol

from keras_moe.kernels.exchange import Bank, ExpertShard, Mix, Pairs
from keras_moe.types import Tensor


class Exchange(Protocol):
    """Sum over replicas, and run experts that lie on several devices.

    T tokens, K top_k, P routed pairs, W and W' widths.
    """

    def num_replicas(self) -> int:
        """Return the number of replicas that take the current step together."""

    def sum_over_replicas(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the replicas of a parallel step.

        Args:
            x: Any shape, which is the same on each replica. The sum has no
                gradient on PyTorch.
        """

    def is_spread(
        self, shard: ExpertShard | None, num_rows: int | Tensor
    ) -> bool:
        """Return whether tokens or experts lie on more than one device.

        A JAX program of symbolic shapes is traced for its shapes, or exported.
        It counts as one device's, since the exchange needs a number of rows.

        Args:
            shard: The shard of a bank, or None. It decides on backends other
                than JAX, where `keras.distribution` does.
            num_rows: T, an int or a symbolic size.
        """

    def num_token_shards(self, bank: Bank) -> int:
        """Return the number of equal parts in which a program's tokens lie."""

    def mix_across(
        self,
        mix: Mix,
        bank: Bank,
        rows: Tensor,
        pairs: Pairs,
        pairs_per_token: int | None,
        most_rows: int | Tensor | None = None,
    ) -> Tensor:
        """Dispatch, run the experts wherever they are, and combine.

        Args:
            mix: `mix(send, rows, pairs)`. It sorts pairs by expert, passes
                the rows `(P, W)`, each expert's count `(E,)`, and the order of
                the pairs to `send`, and combines the returned rows to
                `(T, W')`.
            bank: The experts.
            rows: `(T, W)`.
            pairs: The pairs of these rows.
            pairs_per_token: int. K, if the pairs of token t are at
                `t * K ... t * K + K-1`; otherwise None.
            most_rows: int. C, if no expert gets more pairs of one token
                shard. `None` (the default) if there is no such bound.

        Returns:
            `(T, W')`.
        """
