"""Run the quickstart in its quick form, on this backend."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from backend import BACKEND
from paths import EXAMPLES


def run(*arguments):
    """Run the quickstart as users do, with XLA's optimizations."""
    users = {name: v for name, v in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=users,
    )


pytestmark = pytest.mark.skipif(
    BACKEND != "jax",
    reason="it runs on the demo's backend and starts the two others itself",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder that a quick run wrote, and its printed text."""
    output = tmp_path_factory.mktemp("quickstart")
    done = run("--quick", "--backend", BACKEND, "--output", output)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


@pytest.mark.slow
def test_results(finished):
    output, _ = finished
    results = json.loads((output / "results.json").read_text())
    assert results["backend"] == BACKEND
    # Chance is 0.1, and 36 steps reach 0.5 to 0.8.
    assert all(value > 0.3 for value in results["accuracy"].values())
    others = {"jax", "tensorflow", "torch"} - {BACKEND}
    assert results["differences"].keys() == others | {"SavedModel", "LiteRT"}
    for difference in results["differences"].values():
        assert difference["largest"] <= difference["tolerance"]
    # There are 360 images of 16 tokens with two experts per token.
    for counts in results["tokens_per_expert"].values():
        assert sum(counts) == 360 * 16 * 2
        assert len(counts) == 8


@pytest.mark.slow
def test_artifacts(finished):
    output, _ = finished
    for name in ("moe.keras", "litert/model.tflite", "tf_saved_model/moe.json"):
        assert (output / name).exists()
    assert (output / "routing.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_output_ends_with_the_table(finished):
    _, printed = finished
    table = printed[printed.index("held-out digits") :]
    for row in ("accuracy", "tokens per expert", "LiteRT", "wall time"):
        assert row in table


@pytest.mark.one_backend
def test_an_unwritable_output_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--quick", "--output", tmp_path / "file" / "below")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Choose another --output" in done.stderr


def test_the_twin_costs_what_the_moe_costs_per_token():
    """The active parameters differ by the router and the experts' biases."""
    from shared import digits

    moe = digits.count_parameters(digits.build_model("moe"))
    dense = digits.count_parameters(digits.build_model("dense"))
    D, E, K = digits.HIDDEN_DIM, digits.NUM_EXPERTS, digits.TOP_K
    assert dense["active"] == dense["total"]
    extra = digits.NUM_BLOCKS * (D * E + (K - 1) * D)
    assert moe["active"] == dense["active"] + extra


def test_shifted_copies_are_of_training_images_only():
    from shared import digits

    (x, y), (test_x, test_y) = digits.load_data()
    assert len(x) == len(y) == 9 * 1437
    assert len(test_x) == len(test_y) == 360
    down = digits.shift(test_x[:1], 1, 0)
    np.testing.assert_array_equal(down[:, 1:], test_x[:1, :-1])
    assert (down[:, 0] == 0).all()
    held_out = {image.tobytes() for image in test_x}
    # A few digits of the data set occur twice, but no shifted copy matches.
    assert not held_out & {image.tobytes() for image in x[1437:]}
