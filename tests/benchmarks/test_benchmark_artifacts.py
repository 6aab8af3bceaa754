"""Test the benchmark of artifacts: the outputs of both forms, and its table."""

import json

import numpy as np
import pytest
from backend import to_numpy

from benchmarks.artifacts import all_experts_layer
from benchmarks.artifacts import exported_formats as artifacts


@pytest.mark.one_backend
def test_the_all_experts_form_has_the_outputs_of_the_block(rng):
    model, rival = all_experts_layer.models(**artifacts.QUICK)
    x = rng.normal(size=(2, 5, 16)).astype("float32")
    np.testing.assert_allclose(
        to_numpy(model(x)), to_numpy(rival(x)), atol=1e-5
    )


def test_the_runtimes_load_without_the_package():
    assert callable(artifacts.load_by_path().load)


def test_the_table_has_every_cell(tmp_path):
    made = {"difference": 2e-7, "bytes": 3_500_000}
    failed = {"failed": "no such operator\nand more"}
    for backend in artifacts.BACKENDS:
        cells = dict.fromkeys(artifacts.FORMATS, made)
        if backend == "torch":
            cells["onnx"] = failed
        (tmp_path / f"{backend}.json").write_text(json.dumps(cells))
    for format in artifacts.FORMATS:
        ratios = {f"{b}-512": 0.125 for b in artifacts.BACKENDS}
        ratios |= {f"{b}-1": 0.25 for b in artifacts.BACKENDS}
        (tmp_path / f"times-{format}.json").write_text(json.dumps(ratios))
    lines = artifacts.table(tmp_path).splitlines()
    assert len(lines) == 2 + 15
    assert "| jax | litert | yes | 2.0e-07 | 3.5 | 0.12 | 0.25 |" in lines
    assert "| torch | onnx | no such operator | | | | |" in lines
