"""Test the content of `moe.json`, and that changes are detected."""

import copy
import hashlib
import json

import pytest
from router_zoo import ROUTERS, model_of
from written_manifest import content_of

from keras_moe.export import describing, load
from keras_moe.export import manifest as manifests
from keras_moe.files.content_checksum import checksum_of_content
from keras_moe_cli.bootstrap import run_command
from keras_moe_cli.cli_errors import CliError
from keras_moe_cli.input_batches import draw, shapes_for_tokens
from keras_moe_cli.runnable import Runnable

pytestmark = pytest.mark.one_backend

MODEL = b"a model"
CONTENT = content_of("litert", "model.tflite", MODEL)


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
    # The manifest's list does not depend on the files.
    assert manifests.listed_files(manifests.read(folder)) == {"model.tflite"}


def places(value, path=()):
    """Yield the path of each value in a nested structure."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, element in inside:
        yield (*path, key)
        if isinstance(element, (dict, list)):
            yield from places(element, (*path, key))


WRONG = [
    *(None, True, -1, 0, 1.5, "text", "", [], {}, [None], [[]], {"a": 1}),
    *(10**12, 10**30, 1e308, -1e308, "\ud800", "\x1b[31m", "../moe.json"),
]
REMOVED = object()


def changed(content, path, value):
    """Return a copy of a nested structure with another value at a path."""
    content = copy.deepcopy(content)
    *parents, last = path
    inside = content
    for key in parents:
        inside = inside[key]
    if value is REMOVED:
        del inside[last]
    else:
        inside[last] = value
    return content


def malformed(content):
    for path in places(content):
        for value in (*WRONG, REMOVED):
            yield changed(content, path, value)


def test_every_change_is_detected(folder):
    """A change that leaves the manifest valid does not match its checksum."""
    good = json.loads((folder / "moe.json").read_text())
    for content in malformed(good):
        if content == good and str(content) == str(good):
            continue
        (folder / "moe.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="must be what keras_moe wrote"):
            manifests.read(folder)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_flipped_bits_are_detected(step, folder):
    """Only a flip in the `e` of a number is harmless: `2E-07` is `2e-07`."""
    path = folder / "moe.json"
    good, text = manifests.read(folder), path.read_bytes()
    for place in range(0, 8 * len(text), step):
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert manifests.read(folder) == good
            assert flipped[place // 8] == ord("E")
        except ValueError as error:
            assert "must be what keras_moe wrote" in str(error)


@pytest.mark.filterwarnings("ignore:The artifact in")
@pytest.mark.parametrize("schema", [1, 2])
def test_accepted_content_can_be_used(schema, folder, capsys):
    """With valid checksums or none, accepted content can be displayed."""
    content = {**CONTENT, "schema": schema}
    if schema == 1:
        del content["files"]
    accepted = 0
    for manifest in malformed(content):
        if schema == 2:
            manifest["checksum"] = checksum_of_content(manifest)
        (folder / "moe.json").write_text(json.dumps(manifest))
        try:
            found = manifests.read_checked(folder)
        except ValueError as error:
            assert "must be " in str(error)
            continue
        accepted += 1
        assert run_command(["inspect", str(folder)]) == 0
        shapes, tokens = shapes_for_tokens(found["inputs"], 4)
        assert tokens > 0
        drawn = Runnable("a", "litert", found["inputs"], [], None, 0.0)
        try:
            [x] = draw(drawn, shapes)
            assert x.shape == shapes[0]
        except CliError as error:
            assert "at most 134,217,728 elements" in str(error)
    capsys.readouterr()
    assert accepted > 50


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"schema": 2, "format": ["onnx"]}',
        '{"schema": {}, "format": "onnx"}',
        '{"schema": 1' + "0" * 10_000 + "}",
        '{"schema": NaN, "format": "onnx"}',
        '{"schema": 2, "format": "onnx", "versions": 3}',
    ],
    ids=range(12),
)
def test_texts_that_are_not_manifests(text, tmp_path, capsys):
    (tmp_path / "moe.json").write_text(text)
    with pytest.raises(ValueError, match="must be what keras_moe wrote"):
        load(tmp_path)
    assert run_command(["inspect", str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) < 1000


def test_a_large_file_is_not_read(tmp_path):
    with open(tmp_path / "moe.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="more than 16777216 bytes"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../a", "/a", "a/../../b", "a//b", ".", "", "a\\b", "c:a", "a\n"],
)
def test_files_outside_of_the_folder(name, folder):
    """A replaced list is refused, even with a valid checksum."""
    content = copy.deepcopy(CONTENT)
    content["files"][name] = content["files"]["model.tflite"]
    content["checksum"] = checksum_of_content(content)
    (folder / "moe.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="`files .a key.` must be"):
        manifests.read(folder)


def test_the_models_file_must_be_listed(folder):
    content = copy.deepcopy(CONTENT)
    content["files"]["other"] = content["files"].pop("model.tflite")
    with pytest.raises(ValueError, match="`files` must be a list with"):
        manifests.save(content, folder)


def test_other_sizes_of_files(folder):
    """`bytes` must be the sum of the sizes of the files."""
    content = {**CONTENT, "bytes": 8}
    with pytest.raises(ValueError, match="`bytes` must be the sum"):
        manifests.save(content, folder)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_fits_the_schema(name, folder):
    model = model_of(ROUTERS[name]())
    (folder / "moe.json").unlink()
    manifest = manifests.make(model, "litert", folder, None)
    manifests.save(manifest, folder)
    assert manifests.read_checked(folder) == manifest
    assert len(manifest["mixtures"]) == 1


@pytest.mark.parametrize(
    "dtype, size",
    [
        *(("bool", 1), ("uint8", 1), ("bfloat16", 2), ("float64", 8)),
        *(("float8_e4m3fn", 1), ("float8_e5m2", 1)),
    ],
)
def test_bytes_of_weights(dtype, size):
    """TensorFlow cannot make weights of some dtypes; other backends can."""
    assert describing._size_of(dtype) == size
