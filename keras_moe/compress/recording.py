"""Measure what the experts of a model do on data.

T tokens, D hidden_dim, E experts, P routed pairs, R tokens that are kept.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe import kernels
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.batches import batches_of
from keras_moe.model_surgery.observe import Call, computing_once, watching
from keras_moe.model_surgery.rebuild import to_array
from keras_moe.types import UNAVAILABLE, Tensor

TOKENS_OF_BATCH = 256
TOKENS_OF_BLOCK = 2048


class Record:
    """Sum up the calls of one block.

    Args:
        num_experts: Positive int. E.
        weights_on: str. `"outputs"` (the default), or `"inputs"` if the outputs
            of the experts contain the combine weights already.

    Attributes:
        pairs: `(E,)`. Number of routed pairs per expert.
        weights: `(E,)`. Sum of the combine weights per expert.
        contributions: `(E,)`. Sum per expert of the norm of each pair's
            weighted output.
        units: int. Number of tokens (or examples) that were sent to an expert.
        tokens: List of float `(R, D)`. A sample of the router's inputs.
        logits: List of float `(R, E)`. The router's logits of this sample.
    """

    def __init__(self, num_experts: int, weights_on: str = "outputs"):
        self.num_experts = num_experts
        self.weights_on = weights_on
        self.pairs = np.zeros(num_experts)
        self.weights = np.zeros(num_experts)
        self.contributions = np.zeros(num_experts)
        self.units = 0
        self.tokens: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []

    def add(self, seen: dict[str, np.ndarray]) -> None:
        """Add the arrays that `_of_call` returned for one call."""
        expert, weight = seen["expert_index"], seen["combine_weights"]
        order = np.argsort(expert, kind="stable")
        order = order[expert[order] < self.num_experts]
        expert, weight = expert[order], weight[order]
        self.pairs += self._by_expert(expert, None)
        self.weights += self._by_expert(expert, weight)
        if "norms" in seen:
            norms = seen["norms"][: len(order)]
            if self.weights_on == "outputs":
                norms = weight * norms
            self.contributions += self._by_expert(expert, norms)
        token = np.unique(seen["token_index"][order])
        self.units += len(token)
        self._sample(seen, token)

    def _by_expert(
        self, expert: np.ndarray, values: np.ndarray | None
    ) -> np.ndarray:
        return np.bincount(expert, values, minlength=self.num_experts)

    def _sample(self, seen: dict[str, np.ndarray], token: np.ndarray) -> None:
        room = TOKENS_OF_BLOCK - sum(map(len, self.tokens))
        size = min(room, TOKENS_OF_BATCH, len(token))
        if size > 0:
            chosen = token[np.linspace(0, len(token) - 1, size).astype(int)]
            logits = seen["router_logits"][:, : self.num_experts]
            logits = np.where(logits <= UNAVAILABLE / 2, 0, logits)
            self.tokens.append(seen["tokens"][chosen])
            self.logits.append(logits[chosen])

    @property
    def saliency(self) -> np.ndarray:
        """The mean contribution per pair, `(E,)`; 0 without pairs."""
        saliency: np.ndarray = self.contributions / np.maximum(self.pairs, 1)
        return saliency


FIELDS = ("expert_index", "combine_weights", "token_index", "router_logits")


def _of_call(routed: Call, computed: Call | None) -> dict[str, Tensor]:
    """Return the arrays to keep of a router's call and its experts' call.

    Args:
        routed: Call of the router.
        computed: Call of the experts, or None if each of them was called on all
            rows by itself.

    Returns:
        A dict of `tokens` `(T, D)`, the router's inputs; the `FIELDS` of the
        assignment; and, with `computed`, `norms` `(P,)`, the Euclidean norm of
        each row of the experts' outputs over all leaves.
    """
    x = routed.args[0]
    kept = {name: getattr(routed.outputs, name) for name in FIELDS}
    kept["tokens"] = ops.reshape(x, (-1, x.shape[-1]))
    if computed is not None:
        squares = [
            ops.sum(
                ops.square(ops.cast(leaf, "float32")),
                axis=tuple(range(1, len(leaf.shape))),
            )
            for leaf in keras.tree.flatten(computed.outputs)
        ]
        kept["norms"] = ops.sqrt(sum(squares))
    return kept


def observe(
    model: keras.Model, blocks: list[Mixture], data: Any
) -> dict[int, Record]:
    """Run a model on data, outside training and without capacity.

    Args:
        model: Model with these blocks.
        blocks: Mixtures to observe.
        data: Arrays or an iterable of batches, as `batches_of` takes them.

    Returns:
        A dict from the id of each block to its record.

    Raises:
        ValueError: If `data` has no batch, or no token of it reaches an expert.
    """
    records = {id(b): Record(b.num_experts, b.weights_on) for b in blocks}
    limits = [
        (block, block.eval_capacity_factor, block.expert_capacity)
        for block in blocks
    ]
    watched = kernels.compiled(_watched(model, blocks), model.variables)
    try:
        for block in blocks:
            block.eval_capacity_factor = block.expert_capacity = None
        for batch in batches_of(data):
            for block, calls in zip(blocks, watched(batch), strict=True):
                for call in calls:
                    call = {n: to_array(x) for n, x in call.items()}
                    records[id(block)].add(call)
    finally:
        for block, factor, capacity in limits:
            block.eval_capacity_factor = factor
            block.expert_capacity = capacity
    if not any(record.units for record in records.values()):
        raise ValueError(
            "`data` must hold inputs that reach an expert. Received: no batch, "
            "or only padding. Pass a few hundred examples as in training."
        )
    return records


def _watched(
    model: keras.Model, blocks: list[Mixture]
) -> Callable[[Any], list[list[dict[str, Tensor]]]]:
    """Return a function from a batch to the arrays to keep, by block."""
    parts = [p for block in blocks for p in (block.router, block.experts)]

    def run(batch: Any) -> list[list[dict[str, Tensor]]]:
        with computing_once(model), watching(parts) as seen:
            model(batch, training=False)
        kept = []
        for block in blocks:
            routed = seen[id(block.router)]
            # If the bank was not called, each expert ran on all rows.
            none: list[Call | None] = [None] * len(routed)
            computed: Sequence[Call | None] = seen[id(block.experts)] or none
            pairs = zip(routed, computed, strict=True)
            kept.append([_of_call(*calls) for calls in pairs])
        return kept

    return run
