"""The command `keras-moe`: what it prints, where, and its exit codes.

D = 8 wide, E = 4 experts, K = 2, F = 6: an expert holds D*F + F + F*D + D
= 110 parameters, two of four are idle for a token.
"""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from written_manifest import MIXTURE, content_of

import keras_moe
import keras_moe_cli
from keras_moe import cli
from keras_moe.cli.errors import one_line
from keras_moe.cli.inputs import shapes_for_tokens
from keras_moe.cli.plain import printable
from keras_moe.cli.runnable import open_runnable
from keras_moe.export import FORMATS
from keras_moe.export import manifest as manifests

BACKEND = keras.backend.backend()
# What this backend writes itself, in seconds.
FORMAT = {"torch": "torch", "tensorflow": "tf_saved_model"}.get(BACKEND)
writes = pytest.mark.skipif(FORMAT is None, reason=f"{BACKEND} writes none")
WIDTH, EXPERTS, TOP_K, INNER = 8, 4, 2, 6
EXPERT = WIDTH * INNER + INNER + INNER * WIDTH + WIDTH


def tiny(length=None, outputs=3):
    return keras.Sequential(
        [
            keras.Input((length, WIDTH), name="tokens"),
            keras_moe.MoEBlock(EXPERTS, INNER, top_k=TOP_K, name="moe"),
            keras.layers.Dense(outputs, name="head"),
        ]
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return tiny()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    """The model's file."""
    file = tmp_path_factory.mktemp("cli") / "tiny.keras"
    model.save(file)
    return file


@pytest.fixture(scope="module")
def artifact(path, tmp_path_factory):
    """The model's artifact, by the command itself."""
    folder = tmp_path_factory.mktemp("cli") / "artifact"
    arguments = ["export", str(path), "--format", FORMAT, "--out", str(folder)]
    assert cli.main(arguments) == 0
    return folder


@pytest.fixture
def manifest(tmp_path):
    """A folder with a manifest and a file that no runtime can load."""
    folder = tmp_path / "written_elsewhere"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"no model")
    content = content_of(
        "onnx",
        "model.onnx",
        b"no model",
        versions={"keras-moe": "0.1.0"},
        mixtures=[MIXTURE, {**MIXTURE, "path": "second"}],
    )
    content["verified"]["unreached"] = {}
    manifests.save(content, folder)
    return folder


@pytest.fixture
def run(capsys):
    """Runs a command line; returns its code, stdout and stderr."""

    def command(*arguments):
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def found(run):
    """Runs a command line with --json; returns its code and the result."""

    def command(*arguments):
        code, out, _ = run(*arguments, "--json")
        return code, json.loads(out)

    return command


def test_inspect_counts_what_a_model_holds(found, model, path):
    code, said = found("inspect", path)
    assert code == 0
    assert said["kind"] == "model"
    assert said["bytes"] == path.stat().st_size
    assert said["parameters"] == model.count_params()
    idle = (EXPERTS - TOP_K) * EXPERT
    assert said["active_parameters"] == model.count_params() - idle
    assert said["expert_bytes"] == 4 * EXPERTS * EXPERT
    assert said["versions"] == {"keras": keras.version()}
    assert set(said["formats"]) == set(FORMATS)
    [mixture] = said["mixtures"]
    assert mixture["expert_parameters"] == EXPERTS * EXPERT
    assert (mixture["num_experts"], mixture["top_k"]) == (EXPERTS, TOP_K)
    assert said["inputs"][0]["shape"] == [None, None, WIDTH]


def test_inspect_of_an_artifact_needs_its_manifest_alone(found, manifest):
    code, said = found("inspect", manifest)
    assert code == 0
    assert said["kind"] == "artifact"
    assert list(said["formats"]) == ["onnx"]
    assert said["expert_bytes"] == 2 * 12800
    assert said["verified"]["largest_difference"] == 2e-7


def test_inspect_for_eyes(run, manifest):
    code, out, err = run("inspect", manifest)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "active per token 200 (6%)" in text
    assert "onnx artifact, exported on jax, written by tensorflow" in text
    assert "13.2 kB, of experts 25.6 kB" in text
    assert "largest difference 2.0e-07, tolerance 1e-05" in text
    assert "second Router 32 1 dropless 1.25 3,200 12.8 kB" in text


ODD = "a[red]b[bold]c:smile:"


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow refuses such names, and Keras keeps their scope",
)
def test_names_with_brackets_are_printed_unchanged(run, tmp_path, monkeypatch):
    """Rich would read them as markup, and `:smile:` as an emoji."""
    monkeypatch.setenv("COLUMNS", "400")
    block = keras_moe.MoEBlock(2, 3, name=ODD)
    file = tmp_path / "[" / "b]" / f"{ODD}.keras"
    file.parent.mkdir(parents=True)
    keras.Sequential([keras.Input((4,), name=f"{ODD}_"), block], name=ODD).save(
        file
    )
    code, out, err = run("inspect", file)
    assert (code, err) == (0, "")
    # The path, the model's name, the input, and the mixture.
    assert out.count(ODD) == 4
    assert str(file) in out
    for command in ("bench", file), ("compare", file, file):
        code, out, err = run(*command)
        assert (code, err) == (0, "")
        assert str(file) in out
    code, _, err = run("inspect", tmp_path / "[" / "b] nothing")
    assert (code, str(tmp_path / "[" / "b] nothing") in err) == (2, True)


def test_an_artifact_in_a_folder_with_brackets(run, manifest):
    folder = manifest.rename(manifest.parent / "a[red]b[")
    code, out, _ = run("inspect", folder)
    assert code == 0
    assert "a[red]b[" in "".join(out.split())


def test_control_characters_are_escaped(run):
    assert printable("é [b]\x1b[31m\n\udcff") == "é [b]\\x1b[31m\\n\\udcff"
    assert printable({"a\r": ["\t", 1, None]}) == {"a\\r": ["\\t", 1, None]}
    code, _, err = run("inspect", "a\x1b[31mb")
    assert code == 2
    assert "Received: a\\x1b[31mb, which" in err


@pytest.mark.one_backend
@writes
def test_export_leaves_a_verified_artifact(found, artifact):
    code, said = found("inspect", artifact)
    assert code == 0
    assert said["format"] == FORMAT
    assert said["exported_on"] == BACKEND
    assert said["verified"]["largest_difference"] <= 1e-5


@pytest.mark.one_backend
@writes
def test_an_artifact_agrees_with_its_model(found, run, path, artifact):
    code, said = found("compare", path, artifact)
    assert code == 0
    assert said["agrees"]
    assert said["tolerance"] == 1e-5
    assert said["speed"]["ratio"] > 0
    code, out, err = run("bench", artifact, "--tokens", 6)
    assert (code, err) == (0, "")
    assert "(1, 6, 8)" in out


def test_compare_finds_the_difference(found, run, model, path, tmp_path):
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    head = other.get_layer("head")
    head.bias.assign(np.array([0.0, 0.5, 0.0], "float32"))
    other.save(tmp_path / "other.keras")
    data = tmp_path / "inputs.npz"
    x = np.random.default_rng(0).normal(size=(5, 4, WIDTH))
    np.savez(data, tokens=x.astype("float32"))
    arguments = "compare", path, tmp_path / "other.keras", "--data", data
    code, said = found(*arguments)
    assert code == 1
    assert said["shapes"] == [[[5, 4, WIDTH]]]
    [output] = said["outputs"]
    assert output["largest_difference"] == pytest.approx(0.5, abs=1e-5)
    assert not output["agrees"]
    code, out, err = run(*arguments, "--tolerance", "0.6")
    assert (code, err) == (0, "")
    assert "5.0e-01" in out


def test_compare_wants_two_forms_of_one_model(run, path, tmp_path):
    tiny(outputs=5).save(tmp_path / "wider.keras")
    code, out, err = run("compare", path, tmp_path / "wider.keras")
    assert (code, out) == (1, "")
    assert "must have outputs of the same number and shapes" in err
    assert "[[None, None, 5]]" in err
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]).save(
        tmp_path / "flat.keras"
    )
    code, out, err = run("compare", path, tmp_path / "flat.keras")
    assert (code, out) == (1, "")
    assert "must have inputs of the same number and shapes" in err
    assert err.count("\n") == 1


def test_bench_makes_tokens_of_free_axes(found, path):
    code, said = found("bench", path, "--tokens", 1, "--tokens", 7)
    assert code == 0
    assert [call["tokens"] for call in said["calls"]] == [1, 7]
    assert said["calls"][1]["shapes"] == [[1, 7, WIDTH]]
    for call in said["calls"]:
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


@pytest.mark.parametrize(
    "policy, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 2e-2)]
)
def test_half_floats_may_differ_by_more(tmp_path, policy, tolerance):
    keras.config.set_dtype_policy(policy)
    ids = keras.Input((None,), dtype="int32", name="ids")
    outputs = keras.layers.Embedding(7, 4)(ids)
    keras.Model(ids, outputs).save(tmp_path / "model.keras")
    runnable = open_runnable(tmp_path / "model.keras")
    assert runnable.tolerance == tolerance
    assert runnable.inputs[0]["below"] == 7


@pytest.mark.skipif(BACKEND != "tensorflow", reason="words are TensorFlow's")
def test_words_are_exact(tmp_path):
    layers = [
        keras.Input((1,), dtype="string"),
        keras.layers.TextVectorization(
            vocabulary=["a", "b"], output_sequence_length=3
        ),
        keras.layers.Embedding(4, 2),
    ]
    keras.Sequential(layers).save(tmp_path / "model.keras")
    runnable = open_runnable(tmp_path / "model.keras")
    assert runnable.tolerance == 1e-5
    [output] = runnable.run([np.array([["a b"], ["b"]])])
    assert output.shape == (2, 3, 2)


def bad_zip(folder):
    with zipfile.ZipFile(folder / "bad.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    return folder / "bad.keras"


def bad_config(folder):
    with zipfile.ZipFile(folder / "bad.keras", "w") as archive:
        archive.writestr("config.json", "{")
        archive.writestr("metadata.json", "{}")
    return folder / "bad.keras"


def no_zip(folder):
    (folder / "bad.keras").write_bytes(b"nothing of a zip")
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
        (no_zip, 1, "16 bytes that are no zip"),
        (no_manifest, 1, "moe.json"),
        (other_schema, 1, "schema 99"),
        (no_json, 1, "Export the model again"),
        (other_file, 2, "Name the folder"),
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


@pytest.mark.skipif(BACKEND == "tensorflow", reason="needs no more than one")
def test_a_place_that_cannot_be_written(run, path, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "artifact"
    code, _, err = run("export", path, "--format", "torch", "--out", out)
    assert code == 1
    assert "`--out`" in err
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    code, _, err = run("export", path, "--format", "torch", "--out", full)
    assert code == 1
    assert "holds something else" in err
    assert (full / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file"),
        (b"no arrays", "numpy.savez"),
        ({"words": np.zeros((2, 3, WIDTH))}, "tokens"),
        ({"tokens": np.zeros((2, 3, WIDTH + 1))}, str([2, 3, WIDTH + 1])),
        ({"tokens": np.zeros(())}, "same number of rows"),
    ],
    ids=["missing", "damaged", "name", "shape", "scalar"],
)
def test_bad_data(run, path, tmp_path, content, words):
    data = tmp_path / "inputs.npz"
    if isinstance(content, bytes):
        data.write_bytes(content)
    elif content is not None:
        np.savez(data, **content)
    code, out, err = run("compare", path, path, "--data", data)
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1


MY_LAYERS = """
import keras


@keras.saving.register_keras_serializable(package="cli_test")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return x + x
"""


def test_a_module_brings_its_classes(run, tmp_path, monkeypatch):
    (tmp_path / "cli_test_layers.py").write_text(MY_LAYERS)
    with monkeypatch.context() as importing:
        importing.syspath_prepend(tmp_path)
        layers = importlib.import_module("cli_test_layers")
    path = tmp_path / "own.keras"
    keras.Sequential([keras.Input((4,)), layers.Doubled()]).save(path)
    keras.saving.get_custom_objects().pop("cli_test>Doubled")
    monkeypatch.delitem(sys.modules, "cli_test_layers")
    code, _, err = run("inspect", path)
    assert code == 1
    assert "--module" in err
    code, _, err = run("inspect", path, "--module", "cli_test_layers")
    assert code == 1
    assert "PYTHONPATH" in err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, out, _ = run("inspect", path, "--module", "cli_test_layers")
    assert code == 0
    assert "No mixture of experts" in out


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra(run, monkeypatch, package):
    here = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == package else here(name, *more),
    )
    code, out, err = run("inspect", "model.keras")
    assert (code, out) == (1, "")
    assert 'pip install "keras-moe[cli]"' in err
    assert err.count("\n") == 1


def test_without_a_formats_packages(run, path, tmp_path, monkeypatch):
    here = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "openvino" else here(name, *more),
    )
    out = tmp_path / "x"
    code, _, err = run("export", path, "--format", "openvino", "--out", out)
    assert code == 1
    assert 'pip install "keras-moe[export]"' in err
    assert not out.exists()


def test_of_a_traceback_the_end_is_told():
    text = (
        "It failed. Received:\nTraceback (most recent call last):\n"
        '  File "x.py", line 1, in <module>\n    f()\n'
        "ValueError: no such thing\nTry another."
    )
    told = "It failed. Received: ValueError: no such thing Try another."
    assert one_line(text) == told


def test_an_artifact_that_its_runtime_cannot_load(run, manifest):
    pytest.importorskip("onnxruntime")
    code, out, err = run("bench", manifest)
    assert (code, out) == (1, "")
    assert "could not be loaded by its runtime" in err
    assert err.count("\n") == 1


def test_debug_shows_where(run, tmp_path):
    code, out, err = run("inspect", no_zip(tmp_path), "--debug")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("keras-moe: ")


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_starts_with_the_formats_writer(monkeypatch, format):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for option in (["--format", format], [f"--format={format}"]):
        settings = keras_moe_cli.backend_for(["export", "m.keras", *option])
        assert settings == {"KERAS_BACKEND": FORMATS[format].writer}


def test_the_users_backend_is_kept(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert keras_moe_cli.backend_for(["export", "--format", "torch"]) == {}


def test_the_backend_in_keras_json_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    settings = keras_moe_cli.backend_for(["bench", "m.keras"])
    assert settings == {"KERAS_BACKEND": "torch"}


def test_threads_are_told_before_the_backend_starts(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for arguments in (["--threads", "2"], ["--threads=2"]):
        settings = keras_moe_cli.threads_for(["bench", "m.keras", *arguments])
        assert set(settings.values()) == {"2"}
    assert keras_moe_cli.threads_for(["bench", "m.keras"]) == {}
    assert keras_moe_cli.threads_for(["bench", "--threads", "many"]) == {}


def test_an_absent_backend_is_not_chosen(monkeypatch, capsys):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "jax" or None
    )
    for arguments in (["export", "m.keras"], ["bench", "m.keras"]):
        settings = keras_moe_cli.backend_for(arguments)
        assert settings == {"KERAS_BACKEND": "jax"}
    # Artifacts run without Keras; its NumPy backend needs JAX and SciPy.
    settings = keras_moe_cli.backend_for(["inspect", "folder"])
    assert settings == {"KERAS_BACKEND": "jax"}
    assert keras_moe_cli.any_backend() == "jax"
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: name in ("jax", "scipy") or None,
    )
    assert keras_moe_cli.any_backend() == "numpy"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        keras_moe_cli.any_backend()
    assert stopped.value.code == 1
    assert "needs a backend of Keras" in capsys.readouterr().err


WAYS = ("-m", "keras_moe_cli"), ("-m", "keras_moe.cli")


def run_help(way, backend, stdout):
    """The exit code and stderr of `--help`."""
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


@pytest.mark.one_backend
@pytest.mark.parametrize("way", WAYS)
def test_a_misspelled_backend_is_told_in_one_line(way):
    code, err = run_help(way, "jaxx", subprocess.DEVNULL)
    assert code == 2
    assert err.startswith("keras-moe: `KERAS_BACKEND` must be one of jax, ")
    assert err.count("\n") == 1


@pytest.mark.one_backend
def test_stdout_that_cannot_be_written_is_told_in_one_line():
    """A full device, a pipe without a reader, or a closed stdout."""
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


def test_a_backend_whose_package_is_missing_is_told(monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else 1
    )
    with pytest.raises(SystemExit) as stopped:
        keras_moe_cli.check_backend("torch")
    assert stopped.value.code == 1
    assert 'Run pip install "keras-moe[torch]"' in capsys.readouterr().err
    keras_moe_cli.check_backend("jax")


@pytest.mark.one_backend
def test_the_command_itself(manifest, tmp_path):
    """Without a backend named, quiet, JSON alone; one line where it fails."""
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
        [sys.executable, "-m", "keras_moe.cli", "inspect", no_zip(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("keras-moe: ")
    assert failed.stderr.count("\n") == 1
