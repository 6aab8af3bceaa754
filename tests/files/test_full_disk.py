"""Test that a full disk gives an OSError that names the place, and no crash.

A limit of the file size simulates a full disk: a write returns an error.
"""

import errno
import pathlib
import tempfile

import keras
import pytest
from backend import BACKEND

from keras_moe import MoEBlock
from keras_moe.distribution import save_model
from keras_moe.export import export
from keras_moe.files.place_errors import place_error

resource = pytest.importorskip("resource")  # not on Windows
FORMATS = {
    "torch": ["torch"],
    "tensorflow": [
        "tf_saved_model",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("litert", "onnx", "openvino")
        ),
    ],
    "jax": ["torch"],  # a PyTorch process writes it from a file
}
LIMIT = 1 << 16


@pytest.fixture(scope="module")
def model():
    """Return a model with more than 128 kB of weights, twice the limit."""
    return keras.Sequential([keras.Input((None, 32)), MoEBlock(4, 128)])


@pytest.fixture
def no_large_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format", FORMATS[BACKEND])
def test_an_export(model, tmp_path, no_large_files, format):
    with pytest.raises(OSError, match="`path` must be a place") as raised:
        export(model, tmp_path / "artifact", format, verify=False)
    assert raised.value.errno == errno.EFBIG
    assert str(tmp_path / "artifact") in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_save(model, tmp_path, no_large_files):
    file = tmp_path / "model.keras"
    file.write_text("earlier")
    with pytest.raises(OSError, match="File too large.*make room") as raised:
        save_model(model, file)
    assert raised.value.errno == errno.EFBIG
    assert file.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EROFS, "x"), errno.EROFS),
        (OSError("h5py: errno = 28, 'No space left on device'"), errno.ENOSPC),
        (RuntimeError("there: Disk quota exceeded\nsee above"), errno.EDQUOT),
        (RuntimeError("basic_ios::clear: iostream error"), errno.EIO),
        (FileNotFoundError(errno.ENOENT, "x"), None),
        (RuntimeError("cannot convert"), None),
    ],
)
def test_errors_of_libraries(error, number, tmp_path):
    found = place_error(error, tmp_path / "artifact")
    assert (found and found.errno) == number


@pytest.mark.one_backend
def test_the_cause_of_an_error_is_read():
    error = RuntimeError("cannot save")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    found = place_error(error, pathlib.Path("artifact"))
    assert found.errno == errno.ENOSPC


@pytest.mark.one_backend
def test_a_full_folder_of_temporary_files_is_named(tmp_path, monkeypatch):
    here = tempfile.TemporaryFile

    def make(dir):
        if dir != tmp_path:
            raise OSError(errno.ENOSPC, "full")
        return here(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    error = OSError(errno.ENOSPC, "full")
    found = str(place_error(error, tmp_path / "artifact"))
    assert f"{tempfile.gettempdir()}: No space left on device" in found


@pytest.mark.one_backend
def test_no_folder_for_temporary_files_can_be_written(tmp_path, monkeypatch):
    """The disk is full from the beginning."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    folders = [str(tmp_path / "missing")]
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: folders)
    found = place_error(OSError(errno.ENOSPC, "full"), tmp_path / "artifact")
    assert found.errno == errno.ENOSPC


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("/etc/vocabulary.txt", None),
        ("{}/artifact", errno.EACCES),
        ("{}/hidden/new/model.pt2", errno.EACCES),
        ("{}", errno.EACCES),
        ("/", errno.EACCES),  # parents of the target are created there
    ],
)
def test_errors_of_the_place_and_of_other_files(tmp_path, name, number):
    name = name.format(tmp_path)
    error = PermissionError(errno.EACCES, "Permission denied", name)
    found = place_error(error, tmp_path / "artifact")
    assert (found and found.errno) == number
