"""Run the example of ensembles in its quick form, on this backend."""

import json
import subprocess
import sys

import pytest
from backend import BACKEND
from paths import EXAMPLES


@pytest.mark.slow
@pytest.mark.skipif(
    BACKEND != "torch", reason="it starts the other two backends itself"
)
def test_the_example_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "ensemble.py", "--quick"]
        + ["--backend", BACKEND, "--output", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    others = {"jax", "tensorflow", "torch"} - {BACKEND}
    assert results["differences"].keys() == others | {"SavedModel", "LiteRT"}
    for difference in results["differences"].values():
        assert difference["largest"] <= difference["tolerance"]
    accuracies = results["accuracy"]
    assert len(accuracies) == 8
    assert all(0 < v <= 1 for values in accuracies.values() for v in values)
    assert "held-out digits" in done.stdout


def test_the_claim_of_the_example_is_checked():
    """The claim holds for a method above the mean, and not below the best."""
    import ensemble

    accuracies = {
        "members, mean": [0.8, 0.8],
        "members, best": [0.9, 0.8],
        "soft_vote": [0.9, 0.8],
        "weighted": [0.84, 0.85],
    }
    assert ensemble.kept(accuracies, "soft_vote")
    assert not ensemble.kept(accuracies, "weighted")


def test_the_sizes_of_the_splits():
    import ensemble

    data = ensemble.load_data()
    sizes = {name: len(labels) for name, (_, labels) in data.items()}
    assert sizes == {"train": 1077, "validation": 360, "test": 360}
