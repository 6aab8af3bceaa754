"""Test the command's errors: one line on stderr, and the exit code."""

import zipfile

import pytest
from command_line import CommandLine, write_no_zip

from keras_moe_cli.cli_errors import one_line
from keras_moe_cli.printable import printable


@pytest.fixture
def run(capsys):
    """Run a command line; return its code, stdout, and stderr."""
    return CommandLine(capsys).run


def test_control_characters_are_escaped(run):
    assert printable("é [b]\x1b[31m\n\udcff") == "é [b]\\x1b[31m\\n\\udcff"
    assert printable({"a\r": ["\t", 1, None]}) == {"a\\r": ["\\t", 1, None]}
    code, _, err = run("inspect", "a\x1b[31mb")
    assert code == 2
    assert "Received: a\\x1b[31mb, which" in err


def bad_zip(folder):
    with zipfile.ZipFile(folder / "bad.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    return folder / "bad.keras"


def bad_config(folder):
    with zipfile.ZipFile(folder / "bad.keras", "w") as archive:
        archive.writestr("config.json", "{")
        archive.writestr("metadata.json", "{}")
    return folder / "bad.keras"


def no_manifest(folder):
    return folder


def other_schema(folder):
    (folder / "moe.json").write_text('{"schema": 99, "format": "onnx"}')
    return folder


def no_json(folder):
    (folder / "moe.json").write_text("{")
    return folder


def other_file(folder):
    (folder / "model.h5").write_bytes(b"")
    return folder / "model.h5"


def nothing(folder):
    return folder / "nothing.keras"


@pytest.mark.parametrize(
    "made, code, words",
    [
        (bad_zip, 1, "zip without config.json"),
        (bad_config, 1, "Save the model again"),
        (write_no_zip, 1, "16 bytes that are not a zip"),
        (no_manifest, 1, "moe.json"),
        (other_schema, 1, "schema 99"),
        (no_json, 1, "Export the model again"),
        (other_file, 2, "Pass the folder"),
        (nothing, 2, "does not exist"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_bad_paths(run, tmp_path, command, made, code, words):
    path = made(tmp_path)
    failed, out, err = run(command, path)
    assert (failed, out) == (code, "")
    assert words in err
    assert str(path) in err
    assert err.count("\n") == 1
    assert err.startswith("keras-moe: ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["export", "m.keras", "--format", "h5", "--out", "x"], "openvino"),
        (["export", "m.keras", "--quantize", "int2", "--out", "x"], "int4"),
        (["export", "m.keras"], "--out"),
        (["bench", "m.keras", "--tokens", "0"], "--tokens"),
        (["inspect"], "PATH"),
        (["improve", "m.keras"], "improve"),
        ([], "--help"),
    ],
    ids=str,
)
def test_usage(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_traceback_is_reduced_to_its_end():
    text = (
        "It failed. Received:\nTraceback (most recent call last):\n"
        '  File "x.py", line 1, in <module>\n    f()\n'
        "ValueError: no such thing\nTry another."
    )
    expected = "It failed. Received: ValueError: no such thing Try another."
    assert one_line(text) == expected


def test_debug_prints_a_traceback(run, tmp_path):
    code, out, err = run("inspect", write_no_zip(tmp_path), "--debug")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("keras-moe: ")
