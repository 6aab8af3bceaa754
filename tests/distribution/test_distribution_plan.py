"""Compare the planner with values by hand and with programs from XLA."""

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
    """The eight devices are two for data, by two for experts, by two for F."""
    found = estimate(PlanConfig(**SIZES), data=2, expert=2, model=2)
    # A device has four experts of two 4 x 8 matrices, and the dense weights.
    assert found.parameters == 4 * 2 * 32 + 100
    # The state has weights, gradients, and Adam's two slots.
    assert found.state_bytes == 4 * 4 * (256 + 100)
    # A device has 16 tokens with two pairs each, and one expert in two is on
    # another device. Rows of 4 floats of 4 bytes travel four times.
    assert found.all_to_all_bytes == 4 * 32 * 4 * 4 // 2
    # A sum over n devices sends 2 (n - 1) / n of its size: dense weights over
    # four, experts over two, and three times 16 tokens of width 4 over two.
    assert found.all_reduce_bytes == 4 * (150 + 256 + 3 * 64)
    assert found.memory_bytes == found.state_bytes + found.activation_bytes
    assert found.sent_bytes == found.all_to_all_bytes + found.all_reduce_bytes


def test_one_device_sends_nothing():
    found = estimate(PlanConfig(**SIZES), data=1, expert=1)
    assert found.sent_bytes == 0
    assert found.parameters == 8 * 2 * 64 + 100


def test_the_best_layout_has_the_least_traffic_that_fits():
    """With large experts and few tokens, summing whole copies is expensive."""
    sizes = {**SIZES, "hidden_dim": 256, "intermediate_dim": 1024}
    config = PlanConfig(**sizes)
    found = plan(config, 8)
    # 8 has ten factorizations into three parts; expert divides 8, and model
    # divides 1024.
    assert len(found.estimates) == 10
    assert found.best.sent_bytes == min(e.sent_bytes for e in found.estimates)
    assert found.best.layout == {"data": 1, "expert": 8, "model": 1}
    # With many tokens and small experts, a sum of gradients is cheaper.
    small = PlanConfig(**{**SIZES, "tokens": 65536, "dense_parameters": 0})
    assert plan(small, 8).best.layout == {"data": 8, "expert": 1, "model": 1}
    # Whole copies send the least, and parts of the experts take less memory.
    many = {"num_experts": 64, "tokens": 2**19}
    large = PlanConfig(**{**sizes, **many})
    best, *others = plan(large, 8).estimates
    room = min(e.memory_bytes for e in others)
    assert room < best.memory_bytes
    tighter = plan(large, 8, memory=room)
    assert tighter.best.memory_bytes == room
    assert len(tighter.estimates) == 10


def test_a_batch_is_divided_by_examples():
    """Five devices could share 320 tokens, but not 32 examples."""
    config = PlanConfig(**{**SIZES, "tokens": 320, "batch_size": 32})
    assert {e.data for e in plan(config, 4).estimates} == {1, 2, 4}
    with pytest.raises(ValueError, match="`devices` .* devices=5"):
        plan(config, 5)


def test_the_sizes_of_a_model():
    inputs = keras.Input((4,))
    x = MoEBlock(8, 16, gated=True, capacity_factor=1.25)(inputs)
    model = keras.Model(
        inputs, MoEBlock(8, 16, gated=True, capacity_factor=1.25)(x)
    )
    config = PlanConfig.of_model(model, tokens=64)
    assert (config.num_blocks, config.num_experts, config.top_k) == (2, 8, 2)
    assert (config.hidden_dim, config.intermediate_dim) == (4, 16)
    assert config.gated and config.capacity_factor == 1.25
    # An expert has three 4 x 16 matrices with their biases.
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
            "`memory` must be at least .* memory=1,000",
        ),
        (
            lambda: PlanConfig.of_model(
                keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]), 8
            ),
            "`model` must contain a MoEBlock",
        ),
    ],
)
def test_plans_that_are_not_possible(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return the results of planned_jax.py."""
    folder = run_script_once(tmp_path_factory, "planned_jax")
    return json.loads((folder / "planned.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="XLA's analyses are JAX's")
def test_plans_agree_with_xlas_programs(programs):
    """Memory agrees within 25 %, and traffic agrees with the programs."""
    assert len(programs) == 4
    for name, found in programs.items():
        planned, measured = found["activations"]
        assert planned == pytest.approx(measured, rel=0.25), name
        sizes = found["sizes"]
        planned, rows = found["all to all"]
        blocks = 2 if name == "1x8" else 1
        # The rows of the first round; the rounds of a loop are as large.
        sent = sum(rows[: 4 * blocks]) * 4
        experts = sizes["expert"]
        assert planned == sent * (experts - 1) // experts, name
        assert len(rows) == (0, 4 * blocks, 9)[(experts > 1) + (name == "2x4")]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="XLA's analyses are JAX's")
def test_planned_sums_agree_with_xlas_programs(programs):
    """The sums are of gradients of weights, and of tokens of width D."""
    # The router is 64 x 8. An expert has two 64 x 128 matrices and biases.
    router, expert = 64 * 8, 2 * 64 * 128 + 128 + 64
    half = 64 * 128 + 64 + 64  # half of an expert, with the whole last bias
    tokens = 4096 // 4 * 64
    wanted = {
        "8x1": router + 8 * expert,
        "2x4": router + 2 * expert,
        "1x8": 2 * router,
        # The pairs' weights are summed, too, besides the tokens' gradients.
        "2x2x2": router + 4 * half + 3 * tokens + 2 * 1024,
    }
    for name, elements in wanted.items():
        # Sums of one or two numbers are the losses of one or two blocks.
        sums = [n for n in programs[name]["all reduce"][1] if n > 2]
        assert sum(sums) == elements, name
