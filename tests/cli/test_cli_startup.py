"""Test how the command starts: the backend, the threads, and the streams."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from command_line import write_manifest, write_no_zip

import keras_moe_cli
from keras_moe.export import FORMATS
from keras_moe_cli.installed_packages import check_backend
from keras_moe_cli.startup_settings import (
    any_backend,
    backend_for,
    threads_for,
)

pytestmark = pytest.mark.one_backend

HEAVY = {"keras", "keras_moe", "numpy", "tensorflow", "jax", "torch", "typer"}


@pytest.mark.parametrize("module", ["keras_moe_cli", "keras_moe_cli.__main__"])
def test_keras_is_not_imported_before_its_backend_is_chosen(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.split())
    assert "keras_moe_cli.startup_settings" in imported
    assert not imported & HEAVY


STUBBED = """
import os, sys
from keras_moe_cli import bootstrap

def run_command(arguments):
    print(os.environ["KERAS_BACKEND"], "keras" in sys.modules)
    return 5

bootstrap.run_command = run_command
bootstrap.main()
"""


@pytest.mark.parametrize(
    "arguments, backend",
    [
        (["export", "m.keras", "--format", "torch"], b"torch"),
        (["inspect", "m.keras"], b"jax"),
    ],
)
def test_main_sets_the_backend_and_leaves_keras_to_the_command(
    arguments, backend
):
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", STUBBED, *arguments],
        env=environment,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (5, b"")
    assert done.stdout.split() == [backend, b"False"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_starts_with_the_formats_writer(monkeypatch, format):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for option in (["--format", format], [f"--format={format}"]):
        settings = backend_for(["export", "m.keras", *option])
        assert settings == {"KERAS_BACKEND": FORMATS[format].writer}


def test_the_users_backend_is_kept(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert backend_for(["export", "--format", "torch"]) == {}


def test_the_backend_in_keras_json_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    settings = backend_for(["bench", "m.keras"])
    assert settings == {"KERAS_BACKEND": "torch"}


def test_threads_are_set_before_the_backend_starts(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for arguments in (["--threads", "2"], ["--threads=2"]):
        settings = threads_for(["bench", "m.keras", *arguments])
        assert set(settings.values()) == {"2"}
    assert threads_for(["bench", "m.keras"]) == {}
    assert threads_for(["bench", "--threads", "many"]) == {}


def test_an_absent_backend_is_not_chosen(monkeypatch, capsys):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "jax" or None
    )
    for arguments in (["export", "m.keras"], ["bench", "m.keras"]):
        settings = backend_for(arguments)
        assert settings == {"KERAS_BACKEND": "jax"}
    # Artifacts run without Keras, whose NumPy backend needs JAX and SciPy.
    settings = backend_for(["inspect", "folder"])
    assert settings == {"KERAS_BACKEND": "jax"}
    assert any_backend() == "jax"
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: name in ("jax", "scipy") or None,
    )
    assert any_backend() == "numpy"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        any_backend()
    assert stopped.value.code == 1
    assert "needs a backend of Keras" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra(monkeypatch, capsys, package):
    here = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == package else here(name, *more),
    )
    monkeypatch.setattr(sys, "argv", ["keras-moe", "inspect", "model.keras"])
    with pytest.raises(SystemExit) as stopped:
        keras_moe_cli.main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (1, "")
    assert f"the command needs {package}." in err
    assert 'pip install "keras-moe[cli]"' in err
    assert err.count("\n") == 1


def test_a_backend_whose_package_is_missing_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else 1
    )
    with pytest.raises(SystemExit) as stopped:
        check_backend("torch")
    assert stopped.value.code == 1
    assert 'Run pip install "keras-moe[torch]"' in capsys.readouterr().err
    check_backend("jax")


# The command runs as a module, and as in the installed script `keras-moe`.
WAYS = (
    ("-m", "keras_moe_cli"),
    ("-c", "from keras_moe_cli import main; main()"),
)


def run_help(way, backend, stdout):
    """Return the exit code and stderr of `--help`."""
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    if backend is not None:
        environment["KERAS_BACKEND"] = backend
    done = subprocess.run(
        [sys.executable, *way, "--help"],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_a_misspelled_backend_gives_one_line(way):
    code, err = run_help(way, "jaxx", subprocess.DEVNULL)
    assert code == 2
    assert err.startswith("keras-moe: `KERAS_BACKEND` must be one of jax, ")
    assert err.count("\n") == 1


def test_stdout_that_cannot_be_written_gives_one_line():
    """Stdout is a full device, a pipe without a reader, or closed."""
    with open("/dev/full", "w") as full:
        assert run_help(WAYS[0], None, full) == (
            1,
            "keras-moe: No space left on device.\n",
        )
    reader, writer = os.pipe()
    os.close(reader)
    assert run_help(WAYS[1], None, writer) == (
        1,
        "keras-moe: stdout: Broken pipe.\n",
    )
    os.close(writer)
    closed = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m keras_moe_cli --help >&-"],
        capture_output=True,
        text=True,
    )
    assert closed.returncode == 1
    assert closed.stderr.startswith("keras-moe: stdout is closed.")
    assert closed.stderr.count("\n") == 1


def test_the_command_itself(tmp_path):
    """The command prints only JSON to stdout, or one line to stderr."""
    manifest = write_manifest(tmp_path)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
    }
    done = subprocess.run(
        [sys.executable, "-m", "keras_moe_cli", "inspect", manifest, "--json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parameters"] == 3300
    failed = subprocess.run(
        [
            sys.executable,
            "-m",
            "keras_moe_cli",
            "inspect",
            write_no_zip(tmp_path),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("keras-moe: ")
    assert failed.stderr.count("\n") == 1
