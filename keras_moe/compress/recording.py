"""What the experts of a model do on data.

T tokens, D hidden_dim, E experts, P routed pairs, R tokens that are kept.
"""

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
    """Sums over all calls of one block.

    pairs: `(E,)`, routed pairs of each expert.
    weights: `(E,)`, their combine weights, summed.
    contributions: `(E,)`, sum of combine weight times the norm of the
        expert's output.
    units: tokens (or examples) that went to some expert.
    tokens: list of float `(R, D)`, some of what the router saw.
    logits: list of float `(R, E)`, theirs.
    """

    def __init__(self, num_experts: int):
        self.num_experts = num_experts
        self.pairs = np.zeros(num_experts)
        self.weights = np.zeros(num_experts)
        self.contributions = np.zeros(num_experts)
        self.units = 0
        self.tokens: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []

    def add(self, seen: dict[str, np.ndarray]) -> None:
        """Adds what `_of_call` took from one call."""
        expert, weight = seen["expert_index"], seen["combine_weights"]
        order = np.argsort(expert, kind="stable")
        order = order[expert[order] < self.num_experts]
        expert, weight = expert[order], weight[order]
        self.pairs += self._by_expert(expert, None)
        self.weights += self._by_expert(expert, weight)
        if "norms" in seen:
            norms = seen["norms"][: len(order)]
            self.contributions += self._by_expert(expert, weight * norms)
        token = np.unique(seen["token_index"][order])
        self.units += len(token)
        self._sample(seen, token)

    def _by_expert(self, expert, values):
        return np.bincount(expert, values, minlength=self.num_experts)

    def _sample(self, seen, token):
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
        """Mean contribution of an expert's pairs, `(E,)`; 0 without any."""
        return self.contributions / np.maximum(self.pairs, 1)


FIELDS = ("expert_index", "combine_weights", "token_index", "router_logits")


def _of_call(routed: Call, computed: Call | None) -> dict[str, Tensor]:
    """What is kept of a call of the router and the one of the experts behind.

    `tokens` `(T, D)`, what the router saw; FIELDS of the assignment; `norms`
    `(P,)`, the Euclidean norm of each row that the experts returned, over all
    its leaves.
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
    """Runs a model on data, outside training and without capacity.

    Args:
        model: whose blocks these are.
        blocks: to watch.
        data: see `batches_of`.

    Returns:
        The record of each block, by its id.

    Raises:
        ValueError: for no data.
    """
    records = {id(block): Record(block.num_experts) for block in blocks}
    limits = [(block, block.eval_capacity_factor) for block in blocks]
    watched = kernels.compiled(_watched(model, blocks), model.variables)
    try:
        for block, _ in limits:
            block.eval_capacity_factor = None
        for batch in batches_of(data):
            for block, calls in zip(blocks, watched(batch), strict=True):
                for call in calls:
                    call = {n: to_array(x) for n, x in call.items()}
                    records[id(block)].add(call)
    finally:
        for block, limit in limits:
            block.eval_capacity_factor = limit
    if not any(record.units for record in records.values()):
        raise ValueError(
            "`data` must hold inputs that reach an expert. Received: no batch, "
            "or padding alone. Pass some hundred examples as in training."
        )
    return records


def _watched(model, blocks):
    """A function of a batch: for each block, what is kept of its calls."""
    parts = [p for block in blocks for p in (block.router, block.experts)]

    def run(batch):
        with computing_once(model), watching(parts) as seen:
            model(batch, training=False)
        kept = []
        for block in blocks:
            routed = seen[id(block.router)]
            # Without a call of theirs the experts all ran on everything.
            computed = seen[id(block.experts)] or [None] * len(routed)
            pairs = zip(routed, computed, strict=True)
            kept.append([_of_call(*calls) for calls in pairs])
        return kept

    return run
