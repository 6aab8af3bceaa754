"""Provide the tests of the command with a model, a manifest, and a runner.

With D = 8, E = 4, K = 2, and F = 6, an expert has D*F + F + F*D + D = 110
parameters, and two of the four experts are idle for a token.
"""

import json

import keras
from written_manifest import MIXTURE, content_of

import keras_moe
from keras_moe.export import manifest as manifests
from keras_moe_cli.bootstrap import run_command

WIDTH, EXPERTS, TOP_K, INNER = 8, 4, 2, 6
EXPERT = WIDTH * INNER + INNER + INNER * WIDTH + WIDTH


def tiny(length=None, outputs=3):
    """Return a model with one mixture."""
    return keras.Sequential(
        [
            keras.Input((length, WIDTH), name="tokens"),
            keras_moe.MoEBlock(EXPERTS, INNER, top_k=TOP_K, name="moe"),
            keras.layers.Dense(outputs, name="head"),
        ]
    )


def save_tiny(folder):
    """Save a tiny model into a folder and return its file."""
    keras.utils.set_random_seed(0)
    path = folder / "tiny.keras"
    tiny().save(path)
    return path


def write_manifest(parent):
    """Write an artifact whose model file no runtime can load."""
    folder = parent / "written_elsewhere"
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


def write_no_zip(folder):
    """Write a `.keras` file that is not a zip file and return its path."""
    path = folder / "bad.keras"
    path.write_bytes(b"nothing of a zip")
    return path


class CommandLine:
    """Runs command lines in this process.

    Args:
        capsys: Fixture of pytest.
    """

    def __init__(self, capsys):
        self.capsys = capsys

    def run(self, *arguments):
        """Run a command line; return its exit code, stdout, and stderr."""
        self.capsys.readouterr()
        code = run_command([str(a) for a in arguments])
        return code, *self.capsys.readouterr()

    def json(self, *arguments):
        """Run a command line with --json; return its exit code and result."""
        code, out, _ = self.run(*arguments, "--json")
        return code, json.loads(out)
