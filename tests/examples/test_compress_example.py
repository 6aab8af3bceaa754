"""Run the example that makes a MoE of digits smaller and trains students."""

import json
import os
import subprocess
import sys

import pytest
from backend import BACKEND
from paths import EXAMPLES, ROOT


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="the example sets its backend")
def test_the_example_runs(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(EXAMPLES / "compress" / "main.py"),
            "--quick",
            "--output",
            str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    smaller = results["runs"][0]["smaller"]
    weights = {name: row["weights"] for name, row in smaller.items()}
    # In both blocks, an expert has 2 * 48 * 48 + 2 * 48 numbers and a router's
    # column has 48. Half the units remove 2 * 48 * 24 + 24 per expert.
    expert, column = 2 * 48 * 48 + 2 * 48, 48
    pruned = 2 * 4 * (expert + column)
    assert weights["MoE"] - weights["pruned by load"] == pruned
    assert weights["MoE"] - weights["merged"] == 2 * 4 * expert
    assert weights["MoE"] - weights["half the hidden units"] == 2 * 8 * 2328
    assert weights["MoE"] - weights["half the weights zero"] == 2 * 8 * 48 * 48
    assert weights["MoE"] - weights["dense, average"] == 2 * (
        7 * expert + 8 * column
    )
    for name in ("moe", "pruned", "student_alone", "student_distilled"):
        assert (tmp_path / f"{name}.keras").exists()


def test_which_results_miss_their_targets():
    from compress import main

    def result(unpruned, pruned, alone, distilled):
        return {
            "seed": 0,
            "smaller": {
                "MoE": {"before": unpruned},
                "pruned by load": {"after": pruned},
            },
            "students": {
                "alone": {"accuracy": alone},
                "distilled": {"accuracy": distilled},
            },
        }

    assert main.failures([result(0.98, 0.96, 0.8, 0.81)]) == []
    missed = main.failures([result(0.98, 0.95, 0.8, 0.8)])
    assert [text.split()[2] for text in missed] == ["pruned", "the"]
