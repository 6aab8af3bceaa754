"""The planner, by hand and beside what XLA says of compiled programs."""

import json
import math

import keras
import pytest
from backend import BACKEND
from run_once import run_script_once

from keras_moe import MoEBlock
from keras_moe.distribution import PlanConfig, estimate, plan

SIZES = {
    "tokens": 64,
    "hidden_dim": 4,
    "intermediate_dim": 16,
    "num_experts": 8,
    "use_bias": False,
    "capacity_factor": 1.0,
    "dense_parameters": 100,
}


def test_state_and_traffic_by_hand():
    """Two groups of two devices, each expert's F on two more."""
    found = estimate(PlanConfig(**SIZES), data=2, expert=2, model=2)
    # Four experts of two 4 x 8 matrices, and the dense weights.
    assert found.parameters == 4 * 2 * 32 + 100
    # Weights, gradients and Adam's two slots.
    assert found.state_bytes == 4 * 4 * (256 + 100)
    # 16 tokens a device, two pairs each, one expert in two is elsewhere;
    # four ways of 4 floats of 4 bytes.
    assert found.all_to_all_bytes == 4 * 32 * 4 * 4 // 2
    # 2 (n - 1) / n: dense weights over four devices, experts over two, three
    # times 16 tokens of 4 over two.
    assert found.all_reduce_bytes == 4 * (150 + 256 + 3 * 64)
    assert found.memory_bytes == found.state_bytes + found.activation_bytes
    assert found.sent_bytes == found.all_to_all_bytes + found.all_reduce_bytes


def test_one_device_sends_nothing():
    found = estimate(PlanConfig(**SIZES), data=1, expert=1)
    assert found.sent_bytes == 0
    assert found.parameters == 8 * 2 * 64 + 100


def test_the_least_traffic_that_has_room():
    """Large experts and few tokens: whole copies would be summed up."""
    sizes = {**SIZES, "hidden_dim": 256, "intermediate_dim": 1024}
    config = PlanConfig(**sizes)
    found = plan(config, 8)
    # Every factorisation of 8 in three parts; e and m divide 8 and 1024.
    assert len(found.estimates) == 10
    assert found.best.sent_bytes == min(e.sent_bytes for e in found.estimates)
    assert found.best.layout == {"data": 1, "expert": 8, "model": 1}
    # Many tokens and small experts: a sum of gradients is cheaper.
    small = PlanConfig(**{**SIZES, "tokens": 65536, "dense_parameters": 0})
    assert plan(small, 8).best.layout == {"data": 8, "expert": 1, "model": 1}
    # Whole copies send least, parts of the experts take less room.
    many = {"num_experts": 64, "tokens": 2**19}
    large = PlanConfig(**{**sizes, **many})
    best, *others = plan(large, 8).estimates
    room = min(e.memory_bytes for e in others)
    assert room < best.memory_bytes
    tighter = plan(large, 8, memory=room)
    assert tighter.best.memory_bytes == room
    assert len(tighter.estimates) == 10


def test_a_batch_is_cut_by_examples():
    """320 tokens of 32 examples: five devices would share the tokens."""
    config = PlanConfig(**{**SIZES, "tokens": 320, "batch_size": 32})
    assert {e.data for e in plan(config, 4).estimates} == {1, 2, 4}
    with pytest.raises(ValueError, match="`devices` .* devices=5"):
        plan(config, 5)


def test_a_model_tells_its_sizes():
    inputs = keras.Input((4,))
    x = MoEBlock(8, 16, gated=True, capacity_factor=1.25)(inputs)
    model = keras.Model(
        inputs, MoEBlock(8, 16, gated=True, capacity_factor=1.25)(x)
    )
    config = PlanConfig.of_model(model, tokens=64)
    assert (config.num_blocks, config.num_experts, config.top_k) == (2, 8, 2)
    assert (config.hidden_dim, config.intermediate_dim) == (4, 16)
    assert config.gated and config.capacity_factor == 1.25
    # Three 4 x 16 matrices with their biases.
    assert config.expert_parameters() == 8 * (3 * 64 + 2 * 16 + 4)
    all_weights = sum(math.prod(w.shape) for w in model.weights)
    experts = 2 * config.expert_parameters()
    assert config.dense_parameters == all_weights - experts


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: PlanConfig(**{**SIZES, "tokens": 0}), "`tokens`"),
        (lambda: PlanConfig(**SIZES, top_k=9), "`top_k`"),
        (lambda: plan(PlanConfig(**SIZES), 0), "`devices`"),
        (lambda: plan(PlanConfig(**SIZES), 11), "`devices` .* devices=11"),
        (
            lambda: plan(PlanConfig(**SIZES), 8, memory=1000),
            "`memory` must hold .* memory=1,000",
        ),
        (
            lambda: PlanConfig.of_model(
                keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]), 8
            ),
            "`model` must contain a MoEBlock",
        ),
    ],
)
def test_what_cannot_be_planned(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """What planned_jax.py leaves."""
    folder = run_script_once(tmp_path_factory, "planned_jax")
    return json.loads((folder / "planned.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="XLA's analyses are JAX's")
def test_plans_are_what_xla_compiles(programs):
    """Memory within a quarter; traffic as counted in the programs."""
    assert len(programs) == 4
    for name, found in programs.items():
        planned, measured = found["activations"]
        assert planned == pytest.approx(measured, rel=0.25), name
        sizes = found["sizes"]
        planned, rows = found["all to all"]
        blocks = 2 if name == "1x8" else 1
        # Those of the first round; a loop's are as large.
        sent = sum(rows[: 4 * blocks]) * 4
        experts = sizes["expert"]
        assert planned == sent * (experts - 1) // experts, name
        assert len(rows) == (0, 4 * blocks, 9)[(experts > 1) + (name == "2x4")]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="XLA's analyses are JAX's")
def test_planned_sums_are_what_xla_compiles(programs):
    """Gradients of dense weights and of experts, and tokens of D."""
    # A router of 64 x 8; experts of 64 x 128 twice, with their biases.
    router, expert = 64 * 8, 2 * 64 * 128 + 128 + 64
    half = 64 * 128 + 64 + 64  # of an expert, the last bias whole
    tokens = 4096 // 4 * 64
    wanted = {
        "8x1": router + 8 * expert,
        "2x4": router + 2 * expert,
        "1x8": 2 * router,
        # The weights of the pairs beside the tokens' gradients.
        "2x2x2": router + 4 * half + 3 * tokens + 2 * 1024,
    }
    for name, elements in wanted.items():
        # One or two numbers are the losses' sums, of one or two blocks.
        sums = [n for n in programs[name]["all reduce"][1] if n > 2]
        assert sum(sums) == elements, name
