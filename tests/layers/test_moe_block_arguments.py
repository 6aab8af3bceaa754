"""Test how the block is configured, and the errors of bad arguments."""

from functools import partial

import keras
import numpy as np
import pytest
from backend import draw
from keras import ops

from keras_moe import Expert, HierarchicalMoE, MoEBlock, Router

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def test_configured_router_and_experts_are_used(rng):
    router = Router(4, top_k=3, scoring="sigmoid")
    experts = Expert(10, 4, gated=True, use_bias=False)
    block = MoEBlock(4, router=router, experts=experts, shared_expert_dim=2)
    block(draw(rng, 5, 6))
    assert block.router is router
    assert block.experts is experts
    assert block.shared_expert.gated and not block.shared_expert.use_bias
    again = MoEBlock.from_config(block.get_config())
    assert again.router.scoring == "sigmoid"
    assert again.router.top_k == 3
    assert again.experts.gated
    assert again.get_config() == block.get_config()


def test_the_number_of_experts_follows_from_what_is_given():
    dense = [keras.layers.Dense(6) for _ in range(3)]
    first = MoEBlock(experts=dense, name="first")
    assert first.num_experts == first.router.num_experts == 3
    assert first.get_config()["num_experts"] == 3
    assert MoEBlock(share_experts_with=first).num_experts == 3
    assert MoEBlock(experts=Expert(8, 5)).num_experts == 5
    assert MoEBlock(intermediate_dim=8, router=Router(7)).num_experts == 7
    groups = HierarchicalMoE(2, experts=Expert(8, 4))
    assert groups.num_experts == groups.router.num_experts == 4
    for make in (MoEBlock, partial(HierarchicalMoE, 2)):
        with pytest.raises(ValueError, match="`num_experts` must .*Received"):
            make(intermediate_dim=8)
    with pytest.raises(ValueError, match="`num_experts` must .*Received"):
        MoEBlock(experts=[])


def test_the_config_holds_plain_arguments():
    config = MoEBlock(
        4, 10, top_k=3, activation="silu", jitter=0.1
    ).get_config()
    assert config["top_k"] == 3
    assert config["intermediate_dim"] == 10
    assert config["activation"] == "silu"
    assert config["jitter"] == 0.1
    assert "router" not in config


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"num_experts": 0, "intermediate_dim": 8}, "num_experts"),
        ({"num_experts": 4, "intermediate_dim": 0}, "intermediate_dim"),
        ({"intermediate_dim": None}, "intermediate_dim"),
        ({"top_k": 5}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"capacity_factor": 0}, "capacity_factor"),
        ({"capacity_factor": -1.0}, "capacity_factor"),
        ({"capacity_factor": float("nan")}, "capacity_factor"),
        ({"eval_capacity_factor": 0.0}, "eval_capacity_factor"),
        ({"priority": "random"}, "priority"),
        ({"activation": "rilu"}, "activation"),
        ({"shared_expert_dim": 0}, "shared_expert_dim"),
        ({"load_balancing_weight": -0.1}, "load_balancing_weight"),
        ({"router_z_weight": float("inf")}, "router_z_weight"),
        ({"jitter": 2.0}, "jitter"),
        ({"dropout": -0.1}, "dropout"),
        ({"router": Router(5)}, "router"),
        ({"intermediate_dim": None, "experts": Expert(8, 5)}, "experts"),
        ({"router": Router(4), "top_k": 1}, "top_k"),
        ({"router": Router(4), "jitter": 0.1}, "jitter"),
        ({"experts": Expert(9, 4)}, "intermediate_dim"),
        (
            {
                "intermediate_dim": None,
                "experts": Expert(8, 4),
                "activation": "silu",
            },
            "activation",
        ),
    ],
    ids=str,
)
def test_bad_arguments(arguments, name):
    arguments = {"num_experts": 4, "intermediate_dim": 8, **arguments}
    with pytest.raises(
        ValueError, match=rf"`{name}` must .*Received: .*{name}"
    ):
        MoEBlock(**arguments)


@pytest.mark.parametrize(
    "inputs, options, name",
    [
        (np.zeros(6, "float32"), {}, "inputs"),
        (np.zeros((3, 6), "int32"), {}, "inputs"),
        (np.zeros((3, 7), "float32"), {}, "inputs"),
        (np.zeros((3, 6), "float32"), {"mask": np.ones(2, bool)}, "mask"),
        (np.zeros((3, 2, 6), "float32"), {"mask": np.ones(3, bool)}, "mask"),
    ],
    ids=["rank", "integers", "width", "mask length", "mask rank"],
)
def test_bad_inputs(inputs, options, name):
    block = MoEBlock(4, 8)
    if inputs.ndim > 1:
        block.build((None, 6))
    with pytest.raises(ValueError, match=f"`{name}` must .*Received"):
        block(ops.convert_to_tensor(inputs), **options)


def test_symbolic_bad_inputs():
    with pytest.raises(ValueError, match="known last dimension"):
        MoEBlock(4, 8)(keras.Input((5, None)))
    with pytest.raises(ValueError, match="floating-point"):
        MoEBlock(4, 8)(keras.Input((5, 6), dtype="int32"))
