"""Train one model on eight virtual devices, and on two processes, of JAX.

`make test` runs one layout, one block, and one program. The tests that are
marked `slow` run them all.
"""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from backend import BACKEND
from paths import SUPPORT
from run_once import run_script_once

from keras_moe.distribution import expert_parallel

pytestmark = pytest.mark.skipif(
    BACKEND != "jax", reason="keras.distribution is JAX's"
)


def results_of(tmp_path_factory, part):
    """Return the results of a part of devices_jax.py."""
    folder = run_script_once(tmp_path_factory, "devices_jax", part)
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of(tmp_path_factory, "everything")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return results_of(tmp_path_factory, "send_unevenly")


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    return results_of(tmp_path_factory, "train_in_three_axes")


def test_eight_devices_train_as_one(divided):
    """Losses, weights, expert bias, and statistics agree after five steps."""
    result = divided["layouts"]["2x2x2"]
    assert result["furthest"] < 1e-5
    # Each device has half of the up and down kernels, 16 x 32 float32, of half
    # of the 8 experts.
    assert result["kernel bytes"]["each"] == [2 * 8 * 16 * 32 * 4 // 4] * 8


def test_capacity_by_position_is_per_device(divided):
    assert divided["capacity"].keys() == {"position"}
    assert divided["capacity"]["position"] < 1e-6


def test_an_uneven_block_has_the_values_and_gradients_of_one_device(uneven):
    assert set(uneven["blocks"]) == {"skewed, 2x4", "skewed, 2x2x2"}
    assert max(uneven["blocks"].values()) < 1e-5


def test_shard_map_with_its_defaults_computes_each_part(tmp_path_factory):
    """The gradient of weights that devices share is the sum over the parts."""
    mapped = results_of(tmp_path_factory, "map_shards")
    assert {"quantized", "layers", "jax_blocks"} < set(mapped)
    assert max(mapped.values()) < 1e-5, mapped


def test_a_model_stays_usable_after_rows_that_do_not_divide(tmp_path_factory):
    after = results_of(tmp_path_factory, "fail")
    assert after.pop("steps") == 1
    assert set(after) == {"predict", "evaluate", "fit", "second batch"}
    for text, difference in after.values():
        assert "5" in text  # the rows of the call or of its last batch
        assert difference == 0.0


def test_a_training_step_gathers_no_kernels(uneven):
    check_that_kernels_stay(uneven["programs"])


def test_a_layout_applies_to_weights_with_as_many_axes():
    """A layer may have the name of an attention projection.

    Optimizers give the slots for a weight's rows the name of the weight: see
    `Adafactor` in `test_optimizer_layouts.py`.
    """
    layout = expert_parallel(1)
    layout.layout_map["mine/kernel"] = (None, "data", None)
    with layout.scope():
        query = keras.layers.Dense(4, name="query")
        query.build((None, 8))
        assert layout.get_variable_layout(query.kernel).axes == (None, None)
        with pytest.raises(
            ValueError, match=r"`layout_map` must .*mine/kernel"
        ):
            keras.layers.Dense(4, name="mine").build((None, 8))


@pytest.mark.slow
def test_every_layout_trains_as_one_device(found):
    """Losses, weights, expert bias, and statistics agree after five steps."""
    layouts = found["layouts"]
    furthest = {name: result["furthest"] for name, result in layouts.items()}
    assert len(furthest) == 6
    assert max(furthest.values()) < 1e-5, furthest


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, parts",
    [
        ("8x1", 1),
        ("2x4", 4),
        ("1x8", 8),
        ("2x2x2", 4),
        ("keras data", 1),
        ("keras map", 4),
    ],
)
def test_a_device_holds_its_part_of_the_kernels(found, layout, parts):
    sizes = found["layouts"][layout]["kernel bytes"]
    # The up and down kernels, 16 x 32 float32, of 8 experts.
    assert sizes["all"] == 2 * 8 * 16 * 32 * 4
    assert sizes["each"] == [sizes["all"] // parts] * 8


@pytest.mark.slow
def test_weights_saved_on_eight_devices_load_on_one_and_on_four(found):
    assert set(found["loaded"]) == {"1", "4"}
    assert max(found["loaded"].values()) < 1e-6


@pytest.mark.slow
def test_values_and_gradients_of_blocks(found):
    """The loads are uneven, and the tokens are not divisible by eight."""
    for name, difference in found["blocks"].items():
        # bfloat16 has eight bits, and sums in bfloat16 are rounded once more.
        assert difference < (2e-2 if "half" in name else 1e-5), name


@pytest.mark.slow
def test_capacity_is_per_device(found):
    assert max(found["capacity"].values()) < 1e-6


def test_dropout_differs_between_devices(uneven):
    """With 4096 units, 0.03 is four standard deviations."""
    assert uneven["dropout"]["dropped"] == pytest.approx(0.5, abs=0.03)
    # Of 512 pairs of units, half are alike by chance.
    assert uneven["dropout"]["alike"] == pytest.approx(0.5, abs=0.09)


def named(program, name, dtype="f32"):
    return [size for n, kind, size in program if (n, kind) == (name, dtype)]


@pytest.mark.slow
@pytest.mark.parametrize("experts", [8, 64])
def test_with_a_capacity_rows_are_sent_once_each_way(found, experts):
    """Each way has K * T_local * D = 2 * 512 / 8 * 16 words for any E."""
    program = found["programs"][f"{experts}, 1.0, False"]
    assert named(program, "all-to-all") == [2048, 2048]
    assert named(program, "all-to-all", "s32") == [experts]  # the counts
    assert len(program) == 3


@pytest.mark.slow
def test_a_training_step_sends_rows_twice_each_way(found):
    program = found["programs"]["64, 1.0, True"]
    assert named(program, "all-to-all") == [2048] * 4


@pytest.mark.slow
def test_without_a_capacity_rounds_are_a_quarter_larger(found):
    """A round sends 1.25 * 16 rows, padded to 24, of width 16 to 8 devices.

    The program has one round, and one round within a loop.
    """
    program = found["programs"]["64, None, False"]
    assert named(program, "all-to-all") == [8 * 24 * 16] * 4


def check_that_kernels_stay(programs):
    assert programs
    for name, program in programs.items():
        assert named(program, "all-to-all"), name
        gathered = [n for n, _, _ in program if n == "all-gather"]
        assert not gathered, name
        # The gradients of the kernels, 64 * 16 * 24, are not summed either.
        assert max([0, *named(program, "all-reduce")]) < 64 * 16 * 24, name


@pytest.mark.slow
def test_kernels_are_neither_gathered_nor_summed(found):
    check_that_kernels_stay(found["programs"])


@pytest.mark.slow
def test_accelerators_send_no_padding(found):
    """The program is lowered for TPUs but not run.

    It sends rows there and back, in one round and in a loop of rounds.
    """
    assert found["ragged"] == 4


# --- two processes ----------------------------------------------------------


def test_two_processes_train_as_one(tmp_path):
    """Each process has half of the experts and reads half of the batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, SUPPORT / "processes_jax.py", tmp_path],
            env={
                **os.environ,
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
            },
        )
        for number in range(2)
    ]
    try:
        assert [p.wait(timeout=300) for p in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (np.load(tmp_path / f"{number}.npz") for number in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for number in range(2):
        found = json.loads((tmp_path / f"{number}.json").read_text())
        assert found["processes"] == 2
        assert found.get("furthest", 0) < 1e-5
        assert ("furthest" in found) == (number == 0)
        assert found["kernel bytes"] * 2 == found["all kernel bytes"]


# --- errors -----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"devices": 9}, "`devices` must be at most .* devices=9"),
        ({"expert": 3}, "must be at most the number .* expert=3.* are 1"),
        ({"data": 1, "model": 2}, "must be at most .* data=1, model=2"),
        ({"model": 0}, "`model` must be an integer above 0"),
        ({"data": "all"}, "`data` must be an integer above 0"),
    ],
)
def test_a_mesh_that_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        expert_parallel(**arguments)


@pytest.mark.parametrize(
    "name, words",
    [
        ("experts", ["`num_experts`", "8 devices", "num_experts=6"]),
        ("inner", ["`intermediate_dim`", "8 devices", "intermediate_dim=12"]),
        ("batch", ["multiple of the devices", "10 examples"]),
        ("devices", ["must be the number", "expert=3", "divisors of 8"]),
        ("idle", ["data=2, expert=2", "devices=4"]),
    ],
)
def test_sizes_that_cannot_be_divided(uneven, name, words):
    for word in words:
        assert word in uneven["raised"][name]
