"""Test the calls that `keras-moe bench` times."""

import pytest
from command_line import WIDTH, CommandLine, save_tiny, write_manifest

from keras_moe_cli.input_batches import shapes_for_tokens


@pytest.fixture
def run(capsys):
    """Run a command line; return its code, stdout, and stderr."""
    return CommandLine(capsys).run


@pytest.fixture
def found(capsys):
    """Run a command line with --json; return its code and the result."""
    return CommandLine(capsys).json


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return the file of a tiny model."""
    return save_tiny(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def manifest(tmp_path):
    """Return an artifact that no runtime can load."""
    return write_manifest(tmp_path)


def test_bench_makes_tokens_of_free_axes(found, path):
    code, result = found("bench", path, "--tokens", 1, "--tokens", 7)
    assert code == 0
    assert [call["tokens"] for call in result["calls"]] == [1, 7]
    assert result["calls"][1]["shapes"] == [[1, 7, WIDTH]]
    for call in result["calls"]:
        per_second = call["tokens"] / (call["median_ms"] / 1e3)
        assert call["tokens_per_second"] == pytest.approx(per_second)


@pytest.mark.parametrize(
    "shape, dtype, tokens, expected",
    [
        ([None, None, 8], "float32", 5, ([(1, 5, 8)], 5)),
        ([None, 4, 8], "float32", 512, ([(128, 4, 8)], 512)),
        ([None, 4, 8], "float32", 1, ([(1, 4, 8)], 4)),
        ([None, 8], "float32", 6, ([(6, 8)], 6)),
        ([None, None], "int32", 6, ([(1, 6)], 6)),
        ([None, 16], "int32", 32, ([(2, 16)], 32)),
        ([None, None, None, 3], "float32", 9, ([(1, 3, 3, 3)], 9)),
        ([4, None, 8], "float32", 8, ([(4, 2, 8)], 8)),
    ],
)
def test_shapes_for_tokens(shape, dtype, tokens, expected):
    inputs = [{"shape": shape, "dtype": dtype}]
    assert shapes_for_tokens(inputs, tokens) == expected


def test_an_artifact_that_its_runtime_cannot_load(run, manifest):
    pytest.importorskip("onnxruntime")
    code, out, err = run("bench", manifest)
    assert (code, out) == (1, "")
    assert "must be an artifact that its runtime can load" in err
    assert err.count("\n") == 1
