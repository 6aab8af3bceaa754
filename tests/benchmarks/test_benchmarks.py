"""Test the comparisons and timings of the benchmarks, on tiny shapes.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k.
"""

import importlib
import warnings

import numpy as np
import pytest
from backend import BACKEND
from paths import ROOT

from benchmarks.memory import peak, training_step
from benchmarks.shared import (
    check_and_time,
    command_line,
    contestants,
    numpy_reference,
    other_libraries,
    random_problem,
    timing,
)
from benchmarks.shared.shapes import Shape

TINY = Shape(T=48, D=16, F=24, E=4, K=2)


class Clock:
    """A clock that only fake calls advance."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds

        return run


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_it_imports(name):
    """Every name that a benchmark imports exists."""
    if name.endswith("other_torch_libraries") and BACKEND != "torch":
        pytest.skip("the blocks are only for PyTorch")
    importlib.import_module(name)


# --- measuring --------------------------------------------------------------


def test_turns_alternate_their_order():
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    limits = timing.Limits(budget=0, rounds=(2, 9), turn=0.5)
    times = timing.interleave(calls, "a", limits, clock)
    assert "".join(clock.log) == "abc" + "abccba" * 2
    assert times == {"a": [1, 1], "b": [1, 1], "c": [1, 1]}


def test_a_fast_call_fills_its_turn_and_the_budget_sets_the_rounds():
    clock = Clock()
    calls = {"a": clock.call("a", 0.25), "b": clock.call("b", 0.125)}
    limits = timing.Limits(budget=10, rounds=(1, 9), turn=0.5)
    times = timing.interleave(calls, "a", limits, clock)
    # A round has four turns of half a second, so five fit into ten seconds.
    assert times == {"a": [0.25] * 5, "b": [0.125] * 5}
    # Two calls of a, or four of b, fill a turn. At first, a and b run once.
    assert clock.log.count("a") == 1 + 5 * 2 * 2
    assert clock.log.count("b") == 1 + 5 * 2 * 4


def test_a_slow_call_takes_fewer_turns():
    clock = Clock()
    calls = {"a": clock.call("a", 0.25), "slow": clock.call("slow", 1.0)}
    limits = timing.Limits(budget=0, rounds=(4, 4), turn=0.25)
    times = timing.interleave(calls, "a", limits, clock)
    assert times == {"a": [0.25] * 4, "slow": [1.0] * 2}


def test_the_ratio_is_taken_within_a_round():
    # The ratios are 2, 1, 4, and 3, whatever differs between the rounds.
    times, base = [2.0, 10.0, 4.0, 3.0], [1.0, 10.0, 1.0, 1.0]
    # The quartiles of 1, 2, 3, and 4 are interpolated at 1.75 and 3.25.
    assert timing.ratio(times, base) == (2.5, 1.75, 3.25)
    assert timing.ratio([6.0], base) == (6.0, 6.0, 6.0)


def test_peak_memory_includes_freed_memory():
    def call():
        np.ones(50_000_000 // 8).sum()

    before = peak.resident()
    grown = peak.peak_resident(call) - before
    assert 45_000_000 < grown < 80_000_000
    assert peak.resident() - before < 10_000_000


# --- the problem ------------------------------------------------------------


def test_skewed_routing_sends_the_share_to_expert_0():
    skewed = random_problem.draw(Shape(T=50, D=16, F=8, E=5, K=1, skewed=True))
    assert skewed.counts[0] == 30
    assert skewed.counts.sum() == 50


def test_every_choice_is_clear():
    drawn = random_problem.draw(TINY, "bfloat16")
    ranked = np.sort(drawn.x @ drawn.router, axis=-1)
    assert (ranked[:, -2] - ranked[:, -3] > random_problem.MARGIN).all()


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_reference_gradient_is_the_slope(top_k):
    drawn = random_problem.draw(Shape(T=6, D=5, F=4, E=3, K=top_k))
    expected = numpy_reference.reference(drawn)
    step = np.zeros_like(drawn.x)
    step[2, 3] = 1e-2

    def loss(x):
        y = numpy_reference.reference(drawn._replace(x=x)).y
        return (y.astype("float64") * drawn.dy).sum()

    slope = (loss(drawn.x + step) - loss(drawn.x - step)) / 2e-2
    assert slope == pytest.approx(expected.dx[2, 3], rel=2e-3, abs=2e-3)


# --- contestants ------------------------------------------------------------


def statuses(contestants):
    """Return each contestant's verdicts, after one call of each kind."""
    references, found = {}, {}
    for one in contestants:
        found[one.name] = [
            check_and_time.check(one, kind, references)[0] for kind in one.kinds
        ]
    return found


@pytest.mark.one_backend
def test_ours_and_the_limits_are_right():
    drawn = random_problem.draw(TINY)
    cast = contestants.limits(drawn) + contestants.ours(drawn, forced=True)
    found = statuses(c._replace(kinds=("forward", "f+b")) for c in cast)
    assert {"limit", "limitE", "keras_moe"} <= found.keys()
    for name, verdicts in found.items():
        assert verdicts == ["ok"] * 2, (name, verdicts)


def test_a_block_that_drops_tokens_is_detected():
    drawn = random_problem.draw(TINY)
    expected = numpy_reference.reference(drawn)
    (one,) = contestants.ours(drawn)
    result = np.array(one.call("forward")())
    result[:12] = 0  # a quarter of the tokens
    verdict = check_and_time.verdict("forward", result, expected, "float32")
    assert verdict.startswith("differs on 25.0% of the tokens")


def test_the_einsum_block_is_right():
    _check_peers(other_libraries.einsum(random_problem.draw(TINY)))


def test_the_peers_are_right():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the peers
        pytest.importorskip("keras_hub", reason="KerasHub is not installed")
        drawn = random_problem.draw(TINY)
        _check_peers(other_libraries.kerashub(drawn))


@pytest.mark.skipif(BACKEND != "torch", reason="the blocks are PyTorch's")
def test_the_peers_of_torch_are_right():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the peers
        from benchmarks.shared import other_torch_libraries as others

        drawn = random_problem.draw(TINY)
        _check_peers(others.transformers(drawn))
        _check_peers(others.lucidrains(drawn))


def _check_peers(builders):
    """Assert that values and gradients are right, except with a capacity."""
    drawn = random_problem.draw(TINY)
    cast = [
        contestants.Contestant(name, build(), drawn, kinds=("forward", "f+b"))
        for name, build in builders.items()
    ]
    for name, verdicts in statuses(cast).items():
        assert verdicts == ["ok"] * 2 or "capacity 1.25" in name, verdicts


@pytest.mark.skipif(BACKEND == "jax", reason="JAX always compiles")
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:The .grad attribute of a Tensor:UserWarning",
)
def test_the_compiled_block_is_right():
    drawn = random_problem.draw(TINY)
    (compiled,) = contestants.compiled(contestants.ours(drawn)[0])
    assert statuses([compiled]) == {compiled.name: ["ok"] * 2}


def test_a_cell_has_a_record_for_each_kind():
    drawn = random_problem.draw(TINY)
    cast = contestants.limits(drawn) + contestants.ours(drawn)
    quick = timing.QUICK
    records = check_and_time.measure_cell(
        cast, ("forward",), quick=True, part="x"
    )
    assert [r["name"] for r in records] == ["limit", "limitE", "keras_moe"]
    assert all(r["status"] == "ok" and r["part"] == "x" for r in records)
    assert records[0]["to_limit"] == [1.0, 1.0, 1.0]
    assert records[2]["rounds"] >= quick.rounds[0]


def test_the_upper_bound_of_memory_adds_weights_and_gradients():
    dense = {"weights": 10, "peak": 100}
    # There are 60 more bytes of weights, and as many of gradients.
    assert training_step.bound(dense, {"weights": 70, "peak": 0}) == 220


def test_an_unknown_shape_is_an_error_of_one_line():
    assert command_line.chosen("L,S", ("S", "M", "L")) == ["S", "L"]
    with pytest.raises(SystemExit, match="S, M, L. Received: X"):
        command_line.chosen("S,X", ("S", "M", "L"))
