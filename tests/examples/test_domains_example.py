"""Run `examples/domains/` in its quick form, on a part of the data."""

import json
import os
import subprocess
import sys

import pytest
from backend import BACKEND
from paths import EXAMPLES

EXAMPLE = EXAMPLES / "domains" / "main.py"
DATA = os.environ.get("KERAS_MOE_DATA_DIR")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="KERAS_MOE_DATA_DIR is not set")
@pytest.mark.skipif(BACKEND != "torch", reason="compiling is expensive")
def test_a_quick_run(tmp_path):
    command = [sys.executable, EXAMPLE, "--quick", "--seeds", "1"]
    command += ["--backend", BACKEND, "--output", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads((tmp_path / "results.json").read_text())
    ((result,),) = results["experts"].values()
    assert 0 < results["tf-idf"] < 1
    # Chance is 1/15 if the domain is known, and 1/150 if it is not.
    assert result["by rule"] > 1 / 30
    assert 0 <= result["agreement"] <= 1
    assert result["cost"] < 1


def test_missing_data_is_an_error_of_one_line(tmp_path):
    command = [sys.executable, EXAMPLE, "--data", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "clinc150/data_full.json does not exist" in done.stderr
