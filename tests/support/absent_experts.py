"""Compare a block that has disabled experts with a block without those experts.

T tokens, D hidden_dim, E experts, N null experts, K top_k, P routed pairs.
"""

import keras
import numpy as np
from backend import BACKEND, draw, layer_gradients
from keras import ops
from router_zoo import ROUTERS, D, E, arrays, router_inputs_of

import keras_moe
from keras_moe import MoEBlock, routing

B, S = 2, 9


T = B * S


BY_GROUP = {"Router of groups", "HierarchicalRouter of groups"}


CASES = {
    **ROUTERS,
    "NoisyTopKRouter with null experts": lambda **kw: keras_moe.NoisyTopKRouter(
        E, num_null_experts=3, **kw
    ),
    "Router sigmoid with a bias and null experts": lambda **kw: (
        keras_moe.Router(
            E,
            2,
            "sigmoid",
            expert_bias=True,
            expert_bias_step=0.1,
            num_null_experts=2,
            **kw,
        )
    ),
    "Router with a scale of each expert": lambda **kw: keras_moe.Router(
        E, 2, expert_scale=True, num_null_experts=2, **kw
    ),
    "HashRouter modulo": lambda **kw: keras_moe.HashRouter(
        E, 2, "modulo", **kw
    ),
    "GShardRouter threshold": lambda **kw: keras_moe.GShardRouter(
        E, "threshold", 0.4, **kw
    ),
}


class Case:
    """A router with two of six experts disabled, and one of the other four.

    Attributes:
        on: List of integers. The experts that are enabled.
        columns: List of integers. The columns to keep of an array that has
            one column per expert, null expert, or group.
    """

    def __init__(self, name, rate=0.0):
        # Whole groups are disabled, because the small router needs groups of
        # equal size.
        self.off = [2, 3] if name in BY_GROUP else [1, 4]
        self.on = [e for e in range(E) if e not in self.off]
        self.large = CASES[name](expert_dropout=rate)
        config = self.large.get_config()
        config |= {"num_experts": len(self.on), "expert_dropout": 0.0}
        if "num_groups" in config and name in BY_GROUP:
            config["num_groups"] = 2
        if config.get("routing_dim", 1) is None:
            config["routing_dim"] = max(2, E // 2)
        if config.get("experts_of_modality"):
            config["experts_of_modality"] = [
                [self.on.index(e) for e in row if e in self.on]
                for row in config["experts_of_modality"]
            ]
        self.factors = {"capacity_factor": 0.8, "eval_capacity_factor": 0.7}
        if name == "ExpertChoiceRouter" and BACKEND == "jax":
            # The number of places per expert depends on the number of experts
            # and fixes a shape. A smaller `experts_per_token` gives the small
            # router as many places, but would change a capacity.
            config["experts_per_token"] *= len(self.on) / E
            self.factors = {}
        self.small = type(self.large).from_config(config)
        self.columns = self._columns()
        if isinstance(self.large, (keras_moe.HashRouter, keras_moe.RuleRouter)):
            self.small.route = self._route_by_the_same_scores

    def _columns(self):
        more = getattr(self.large, "num_columns", E) - E
        groups = isinstance(self.large, keras_moe.HierarchicalRouter)
        kept = [g for g in range(more) if not groups or 2 * g in self.on]
        return [*self.on, *(E + g for g in kept)]

    def _route_by_the_same_scores(self, batch):
        """Route by the enabled columns; a hash of four experts would differ."""
        ids = ops.arange(T, dtype="int32")  # round robin
        if self.ids is not None:
            ids = ops.convert_to_tensor(self.ids.reshape(-1))
        if isinstance(self.large, keras_moe.RuleRouter):
            scores = routing.rule_scores(ids, E, None)
        elif self.large.method == "hash":
            scores = routing.hash_scores(ids, E)
        else:
            scores = routing.cyclic_scores(ids, E)
        return routing.fixed_assignment(
            ops.take(scores, np.array(self.on), axis=1),
            self.large.top_k,
            batch.conditions,
        )

    def part(self, array, of=None):
        """Return the part of a large block's array that the small block has."""
        array = np.asarray(array)
        shape = array.shape if of is None else of
        for axis, size in enumerate(shape):
            if array.shape[axis] == size:
                continue
            kept = self.on if array.shape[axis] == E else self.columns
            array = np.take(array, kept, axis=axis)
        return array

    def inputs(self, rng):
        """Return tokens, and the other inputs of the large and small block."""
        mask = np.ones((B, S), bool)
        mask[1, -2:] = False
        given = {"mask": mask}, {"mask": mask}
        self.ids = router_inputs_of(self.large, (B, S))
        if self.ids is not None:
            given[0]["router_inputs"] = given[1]["router_inputs"] = self.ids
            if self.large.router_inputs_kind == "logits":
                given[1]["router_inputs"] = self.ids[..., self.on]
        return draw(rng, B, S, D), *given


def blocks_of(case, rng, **options):
    """Return both blocks, with the same random values in shared weights."""
    large = MoEBlock(E, 6, router=case.large, **options)
    small = MoEBlock(len(case.on), 6, router=case.small, **options)
    for block in (large, small):
        block.build((B, S, D))
    for mine, theirs in zip(large.weights, small.weights, strict=True):
        kept = mine.trainable or mine.name in ("expert_bias", "l1_coefficient")
        value = mine.numpy()
        if kept:
            value = rng.normal(size=value.shape) * 0.7
            value = np.abs(value) if mine.name == "l1_coefficient" else value
            mine.assign(value)
        theirs.assign(case.part(value, theirs.shape))
    return large, small


class Reported(keras.layers.Layer):
    """A layer that returns the outputs and the losses of a block."""

    def __init__(self, block, given):
        super().__init__()
        self.block, self.given, found = block, given, []
        self.found = lambda: found
        block.add_loss = found.append

    def call(self, x, training=None):
        self.found().clear()
        y = self.block(x, training=training, **self.given)
        parts = [y, *self.found()]
        return ops.concatenate([ops.reshape(x, (-1,)) for x in parts])


def fix_draws(monkeypatch, case, rng):
    """Make both blocks draw the same numbers in the columns that they share.

    `expert_dropout` drops the experts in `case.off`.
    """
    normal = rng.normal(size=(T, len(case.columns) + 9)).astype("float32")
    of_experts = np.where(np.isin(np.arange(E), case.off), 0.1, 0.9)
    by_token = rng.uniform(size=(T,)).astype("float32")
    rows = rng.uniform(0.99, 1.01, (T, D)).astype("float32")
    uniform = rng.uniform(size=normal.shape).astype("float32")

    def by_column(table, num):
        columns = case.columns if num == len(case.columns) else range(num)
        return ops.convert_to_tensor(table[:, list(columns)])

    def draw_normal(shape, dtype=None, seed=None):
        return by_column(normal, shape[1])

    def draw_uniform(shape, low=0.0, high=1.0, dtype=None, seed=None):
        if len(shape) == 2 and shape[1] != D:
            return by_column(uniform, shape[1])
        values = {(E,): of_experts.astype("float32"), (T,): by_token}
        return ops.convert_to_tensor(values.get(tuple(shape), rows))

    monkeypatch.setattr(keras.random, "normal", draw_normal)
    monkeypatch.setattr(keras.random, "uniform", draw_uniform)


def assert_same_assignment(case, large, small):
    """Assert that both blocks have the same pairs, except for renumbering."""
    large, small = arrays(large), arrays(small)
    numbers = np.full(2 * E + 9, -1)
    numbers[case.on] = np.arange(len(case.on))
    numbers[E:] = len(case.on) + np.arange(E + 9)
    pairs = {}
    for name in ("token_index", "expert_index", "combine_weights"):
        mine = getattr(large, name)
        if case.large.pairs_per_token is None:
            mine = mine.reshape(E, -1)[case.on].reshape(-1)
        else:
            mine = mine.reshape(T, -1)[:, : case.small.pairs_per_token]
        pairs[name] = mine.reshape(-1)
    np.testing.assert_array_equal(pairs["token_index"], small.token_index)
    np.testing.assert_array_equal(
        numbers[pairs["expert_index"]], small.expert_index
    )
    close(pairs["combine_weights"], small.combine_weights)
    close(large.router_probs[:, case.on], small.router_probs)
    assert (large.router_probs[:, case.off] == 0).all()
    nulls = range(E, large.router_logits.shape[1])
    close(large.router_logits[:, [*case.on, *nulls]], small.router_logits)


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)


def assert_same_step(case, blocks, x, given):
    """Assert that one training step gives equal results and state updates."""
    found = [
        layer_gradients(Reported(block, options), x, training=True)
        for block, options in zip(blocks, given, strict=True)
    ]
    (y, mine), (y_small, theirs) = found
    close(y, y_small)
    for name, gradient in mine.items():
        wanted = theirs[name]
        close(case.part(gradient, wanted.shape), wanted)
        for axis, size in enumerate(gradient.shape):
            if size != wanted.shape[axis]:
                lost = np.take(gradient, case.off, axis=axis)
                np.testing.assert_array_equal(lost, 0)
    large, small = blocks
    for one, other in zip(
        large.non_trainable_weights, small.non_trainable_weights, strict=True
    ):
        if one.name != "expert_enabled" and "seed" not in one.path:
            close(case.part(one.numpy(), other.shape), other.numpy())
