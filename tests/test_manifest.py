"""`moe.json`: what it may hold, and that a change of it is noticed."""

import hashlib
import json

import pytest

from keras_moe.export import load
from keras_moe.export import manifest as manifests

pytestmark = pytest.mark.one_backend

MODEL = b"a model"
CONTENT = {
    "schema": 2,
    "format": "litert",
    "file": "model.tflite",
    "inputs": [{"name": "x", "shape": [None, 8], "dtype": "float32"}],
    "outputs": [{"shape": [None, 8], "dtype": "float32"}],
    "quantize": None,
    "exported_on": "jax",
    "written_by": "tensorflow",
    "versions": {"keras-moe": "0.1.0", "tensorflow": None},
    "bytes": 7,
    "parameters": 3300,
    "active_parameters": 200,
    "parameter_bytes": 13200,
    "mixtures": [
        {
            "path": "moe",
            "class": "MoEBlock",
            "router": "Router",
            "num_experts": 32,
            "top_k": 1,
            "capacity_factor": 1.25,
            "eval_capacity_factor": None,
            "expert_parameters": 3200,
            "expert_bytes": 12800,
        }
    ],
    "verified": {
        "largest_difference": 2e-7,
        "tolerance": 1e-5,
        "shapes": [[[2, 8]], [[3, 8]]],
        "unreached": {"moe": [3]},
    },
    "files": {
        "model.tflite": {
            "bytes": 7,
            "sha256": hashlib.sha256(MODEL).hexdigest(),
        }
    },
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.tflite").write_bytes(MODEL)
    manifests.save(dict(CONTENT), tmp_path)
    return tmp_path


def test_read_returns_the_content(folder):
    found = manifests.read_checked(folder)
    checksum = found.pop("checksum")
    assert found == CONTENT
    text = json.dumps(CONTENT, sort_keys=True, separators=(",", ":"))
    assert checksum == hashlib.sha256(text.encode()).hexdigest()


def test_spaces_and_order_do_not_matter(folder):
    path = folder / "moe.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert manifests.read_checked(folder) == content


def test_listed_files(folder):
    assert manifests.listed_files(manifests.read(folder)) == {"model.tflite"}


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda path: path.unlink(), "model.tflite is missing"),
        (lambda path: path.write_bytes(b"a mode"), "6 bytes instead of 7"),
        (lambda path: path.write_bytes(b"a modem"), "SHA-256 of model.tflite"),
    ],
)
def test_a_damaged_file(folder, damage, match):
    damage(folder / "model.tflite")
    with pytest.raises(ValueError, match=match):
        load(folder)
    # What the manifest lists does not depend on the files.
    assert manifests.listed_files(manifests.read(folder)) == {"model.tflite"}
