"""Test the report of the benchmarks with results written by hand."""

import json
import sys

import pytest

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


from benchmarks.report import make_report  # noqa: E402


def result_of(**fields):
    """Return a result as `run_suite.py` writes it, with changed fields."""
    versions = {"keras": "3.15"}
    return {
        "backend": "torch",
        "pinned": False,
        "quick": True,
        "machine": {
            "cpu": "a cpu",
            "cores": 2,
            "memory_gb": 8,
            "versions": versions,
            "commit": "abc",
            "date": "2026-01-01",
        },
        "records": [],
    } | fields


def timed(name, shape, seconds, **fields):
    ratios = {"to_limit": [seconds, 1.0, 9.0], "to_limitE": [0.5, 0.4, 0.6]}
    return {
        "part": "blocks",
        "name": name,
        "shape": shape,
        "kind": "forward",
        "dtype": "float32",
        "status": "ok",
        "seconds": seconds,
        **ratios,
        **fields,
    }


def test_report_of_a_hand_made_result(tmp_path, monkeypatch, capsys):
    records = [
        timed("limit", "S", 1.0),
        timed("keras_moe", "S", 1.5),
        timed("keras_moe", "D1", 1.5),
        timed("KerasHub Qwen3-MoE", "S", 6.0, to_keras_moe=[4.0] * 3),
        timed("dropper", "S", 1.0, status="differs on 3.0% of the tokens"),
    ]
    for e, ratio in ((8, 1.0), (128, 1.5)):
        ratios = [ratio, ratio, ratio]
        fields = {"part": "experts", "E": e, "to_limitE": ratios}
        records.append(timed("keras_moe", None, 1.0, **fields))
    for name, share in (("Router", 0.04), ("SinkhornRouter", 0.4)):
        fields = {
            "part": "routers",
            "kind": "training",
            "to_block": [share] * 3,
        }
        records.append(timed(name, "M", 1.0, **fields))
    text = json.dumps(result_of(records=records))
    (tmp_path / "torch.json").write_text(text)
    readme = tmp_path / "README.md"
    marks = "<!-- benchmark-table -->", "<!-- /benchmark-table -->"
    readme.write_text(f"before {marks[0]} old {marks[1]} after")
    command = ["make_report.py", str(tmp_path), "--write", str(readme)]
    monkeypatch.setattr(sys, "argv", command)
    make_report.main()
    printed = capsys.readouterr().out
    assert "| torch | S | 1.50 (1.00-9.00); 1.40 | -; 1.20 |" in printed
    assert "| torch | D1 | 0.50 (0.40-0.60); 1.05 |" in printed
    # The growth is 1.5 / 1.0, and the target is 1.25.
    assert "over ours, S forward | >= 3.0 | 4.00 |" in printed
    assert "128, forward | <= 1.25 | 1.50 (missed: <= 1.25) |" in printed
    assert "of the block's forward, M | <= 0.15 | 0.04 |" in printed
    assert "SinkhornRouter, the same | <= 0.3 | 0.40 (missed" in printed
    assert "| SinkhornRouter |  | 0.400 |" in printed
    assert "differs on 3.0% of the tokens" in printed
    assert "before <!-- benchmark-table -->\n| backend" in readme.read_text()
    assert readme.read_text().endswith("<!-- /benchmark-table --> after")
    for name in ("experts", "peers_S"):
        image = (tmp_path / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")


def test_the_error_without_results_names_the_command(tmp_path):
    with pytest.raises(SystemExit, match="run_suite.py --out"):
        make_report.load(tmp_path)
