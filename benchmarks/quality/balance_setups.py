"""List the routers that `balance.py` compares, with and without balancing."""

from typing import NamedTuple

import keras_moe

SETTINGS = {
    "num_classes": 10,
    "num_experts": 8,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "num_blocks": 1,
    "learning_rate": 4e-3,
    "batch_size": 64,
    "test_batch_size": 256,
    "position_std": 0.3,
    "shared_std": 0.5,
    "router_kernel_std": 0.3,
    "load_balancing_weight": 0.3,
    "noisy_weight": 0.3,
    "expert_bias_step": 0.01,
    "l1_start": 1e-3,
}


class Setup(NamedTuple):
    """A router and its arguments. Equal setups are trained once per seed.

    router: str. Name of a class of `keras_moe`.
    arguments: pairs. Arguments of the router.
    block: pairs. Further arguments of its block.
    """

    router: str
    arguments: tuple = ()
    block: tuple = ()

    @property
    def needs_ids(self):
        """Whether the router needs token ids."""
        return self.router == "HashRouter"


def _setup(router, block=None, **arguments):
    return Setup(router, tuple(arguments.items()), tuple((block or {}).items()))


def _weight(weight, **others):
    return {"load_balancing_weight": weight, **others}


def compared():
    """Return the setups with and without balancing of each row, by name."""
    on = _weight(SETTINGS["load_balancing_weight"])
    off = _weight(0.0)
    best = {"top_k": 1, "normalize_weights": False}
    plain = _setup("Router", off, **best)
    rows = {
        f"Router, {kind}": (
            _setup("Router", {**on, "load_balancing": kind}, **best),
            plain,
        )
        for kind in keras_moe.losses.LOAD_BALANCING
    }
    step = SETTINGS["expert_bias_step"]
    biased = _setup("Router", expert_bias=True, expert_bias_step=step, **best)
    rows["Router, expert_bias"] = biased, plain
    rows["SwitchRouter"] = _pair("SwitchRouter", on, off)
    rows["CosineRouter"] = _pair("CosineRouter", on, off, **best)
    rows["AttentionRouter"] = _pair("AttentionRouter", on, off, **best)
    rows["SinkhornRouter"] = _setup("SinkhornRouter"), plain
    rows["HashRouter, hash"] = _setup("HashRouter"), plain
    rows["HashRouter, modulo"] = _setup("HashRouter", method="modulo"), plain
    noisy = SETTINGS["noisy_weight"]
    rows["NoisyTopKRouter"] = (
        _setup("NoisyTopKRouter", importance_weight=noisy, load_weight=noisy),
        _setup("NoisyTopKRouter", importance_weight=0.0, load_weight=0.0),
    )
    rows["GShardRouter"] = _pair("GShardRouter", on, off)
    rows["ExpertChoiceRouter"] = (
        _setup("ExpertChoiceRouter", bidirectional=True),
        _setup("Router", off, top_k=2),
    )
    rows["ReLURouter"] = (
        _setup("ReLURouter", l1_start=SETTINGS["l1_start"]),
        _setup("ReLURouter", l1_start=1e-30, l1_growth=1.0001),
    )
    rows["TopPRouter"] = (
        _setup("TopPRouter", on),
        _setup("TopPRouter", off, entropy_weight=0.0),
    )
    return rows


def _pair(router, on, off, **arguments):
    return _setup(router, on, **arguments), _setup(router, off, **arguments)
