"""Test that a hostile PyTorch artifact is refused before any of its code runs.

Each attack changes a good archive so that `torch.export.load`, `module()`, or
the first call creates a file, `marker`. The attacks in `REAL` also run without
keras_moe, to show that PyTorch alone executes them.
"""

import contextlib
import io
import json
import pickle
import zipfile

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy

from keras_moe.export import checksums, export, load, torch_archive, verify
from keras_moe.export import manifest as manifests
from keras_moe_cli.bootstrap import run_command

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.one_backend,
    pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's own format"),
    pytest.mark.filterwarnings("ignore"),  # PyTorch warns about unpickling
]

MODEL = "model/models/model.json"
EXAMPLES = "model/data/sample_inputs/model.pt"
CONSTANTS = "model/data/constants/model_constants_config.json"
WEIGHTS = "model/data/weights/model_weights_config.json"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 3), name="x")
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    """Return the records of a good archive, and its folder."""
    folder = tmp_path_factory.mktemp("good") / "artifact"
    export(model, folder, "torch", verify=False)
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        records = {renamed(n): archive.read(n) for n in archive.namelist()}
    return records, folder


def renamed(record):
    """Return a record's path below the folder name that the attacks use."""
    return "model/" + record.partition("/")[2]


@pytest.fixture
def rewritten(good, tmp_path):
    """Return a function that writes changed records with valid checksums."""
    records, folder = good

    def write(change):
        changed = dict(records)
        marker = tmp_path / "marker"
        change(changed, marker)
        target = tmp_path / "artifact"
        target.mkdir()
        with zipfile.ZipFile(target / "model.pt2", "w") as archive:
            for name, content in changed.items():
                archive.writestr(name, content)
        content = manifests.read(folder)
        files = checksums.of_folder(target)
        size = files["model.pt2"]["bytes"]
        manifests.save({**content, "files": files, "bytes": size}, target)
        return target, marker

    return write


def pickled(marker):
    """Return bytes that `torch.load` unpickles."""
    buffer = io.BytesIO()
    torch.save(Payload(marker), buffer)
    return buffer.getvalue()


def code(marker):
    """Return a Python expression that creates the marker."""
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def edited(records, name, edit):
    """Apply a function to the JSON of a record."""
    content = json.loads(records[name])
    edit(content)
    records[name] = json.dumps(content).encode()


def in_graph(edit):
    return lambda records, marker: edited(
        records, MODEL, lambda m: edit(m, m["graph_module"]["graph"], marker)
    )


def pickled_constant(records, marker):
    edited(records, CONSTANTS, lambda c: first(c).update(use_pickle=True))
    records["model/data/constants/tensor_0"] = pickled(marker)


def first(config):
    return config["config"]["lifted_tensor_0"]


def pickled_weight(records, marker):
    entry = {**first(json.loads(records[CONSTANTS])), "use_pickle": True}
    entry["path_name"] = "weight_0"
    edited(records, WEIGHTS, lambda c: c["config"].update(a=entry))
    records["model/data/weights/weight_0"] = pickled(marker)


def opaque_object(records, marker):
    name = "opaque_obj_0"
    entry = {"path_name": name, "use_pickle": True}
    edited(records, CONSTANTS, lambda config: first(config).update(entry))
    records[f"model/data/constants/{name}"] = pickle.dumps(Payload(marker))


def legacy_weights(records, marker):
    records["model/data/weights/model.pt"] = pickled(marker)


def legacy_constants(records, marker):
    records["model/data/constants/model.pt"] = pickled(marker)


def example_inputs(records, marker):
    records[EXAMPLES] = pickled(marker)


def format_of_2024(records, marker):
    """Use PyTorch 2.7's format, which `torch.export.load` tries as fallback."""
    program = records[MODEL]
    records.clear()
    records["version"] = b"8.1"
    records["serialized_exported_program.json"] = program
    for name in ("constants", "state_dict", "example_inputs"):
        records[f"serialized_{name}.pt"] = pickled(marker)


def size(model, graph, marker):
    value = graph["inputs"][-1]["as_tensor"]["name"]
    sizes = graph["tensor_values"][value]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = code(marker)


def guard(model, graph, marker):
    model["guards_code"] = [code(marker)]


def function(model, graph, marker):
    node = graph["nodes"][-1]
    node["target"] = "torch.os.mkdir"
    argument = {"name": "", "arg": {"as_string": str(marker)}, "kind": 1}
    node["inputs"] = [argument]


def saved_tensor(model, graph, marker):
    node = graph["nodes"][-1]
    tensor = next(i for i in node["inputs"] if "as_tensor" in i["arg"])
    node["target"] = "torch.ops.aten.save.default"
    node["inputs"] = [
        {**tensor, "name": "item"},
        {"name": "filename", "arg": {"as_string": str(marker)}, "kind": 1},
    ]


def mapped_file(model, graph, marker):
    node = graph["nodes"][-1]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [
        {"name": "filename", "arg": {"as_string": str(marker)}, "kind": 1},
        {"name": "shared", "arg": {"as_bool": True}, "kind": 2},
        {"name": "size", "arg": {"as_int": 8}, "kind": 2},
    ]


def name(model, graph, marker):
    """Put code into the generated function by the name of an argument."""
    text = json.dumps(model)
    old = graph["inputs"][-1]["as_tensor"]["name"]
    new = f"{old}={code(marker)}"
    changed = json.loads(text.replace(json.dumps(old), json.dumps(new)))
    model.update(changed)


def enumeration(model, graph, marker):
    """Import a module when a context is decoded."""
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    context = {"__enum__": True, "fqn": "antigravity:x", "name": "x"}
    spec = {"type": "builtins.dict", "context": json.dumps(context)}
    spec["children_spec"] = []
    signature["out_spec"] = json.dumps([1, spec])


REAL = {
    "a pickled constant": pickled_constant,
    "a pickled weight": pickled_weight,
    "an opaque object": opaque_object,
    "weights of the old kind": legacy_weights,
    "constants of the old kind": legacy_constants,
    "example inputs": example_inputs,
    "the format of PyTorch 2.7": format_of_2024,
    "a size": in_graph(size),
    "a guard": in_graph(guard),
    "a file to map": in_graph(mapped_file),
    "a name": in_graph(name),
}
# PyTorch itself stops these attacks later, or they do no harm alone.
OTHER = {
    "a function": in_graph(function),
    "a tensor to save": in_graph(saved_tensor),
    "an enumeration": in_graph(enumeration),
    "a custom object": lambda records, marker: edited(
        records,
        CONSTANTS,
        lambda config: first(config).update(path_name="custom_obj_0"),
    ),
    "a compiled library": lambda records, marker: records.update(
        {"model/data/aotinductor/model/a.so": b""}
    ),
    "another program": lambda records, marker: records.update(
        {"model/models/second.json": records[MODEL]}
    ),
    "a name in capitals": lambda records, marker: records.update(
        {"model/DATA/constants/tensor_0": b""}
    ),
    "a constant elsewhere": lambda records, marker: edited(
        records,
        CONSTANTS,
        lambda config: first(config).update(path_name="../a"),
    ),
    "no example inputs": lambda records, marker: records.pop(EXAMPLES),
    "a program of another kind": lambda records, marker: records.update(
        {MODEL: b"[" * 10**5}
    ),
}


def assert_refused(folder, marker):
    with pytest.raises(ValueError, match="nothing that could run code"):
        load(folder)
    assert not marker.exists()


@pytest.mark.parametrize("attack", REAL)
def test_code_is_refused(attack, rewritten):
    folder, marker = rewritten(REAL[attack])
    assert_refused(folder, marker)
    # PyTorch alone runs the code; most attacks then end with an error.
    with contextlib.suppress(Exception):
        program = torch.export.load(folder / "model.pt2")
        program.module()(torch.ones(2, 4, 3))
    assert marker.exists()


@pytest.mark.parametrize("attack", OTHER)
def test_unexpected_content_is_refused(attack, rewritten):
    assert_refused(*rewritten(OTHER[attack]))


def test_a_record_that_is_listed_twice(rewritten):
    def twice(records, marker):
        pass

    folder, marker = rewritten(twice)
    with zipfile.ZipFile(folder / "model.pt2", "a") as archive:
        archive.writestr(MODEL, b"{}")
    content = manifests.read(folder)
    content["files"] = checksums.of_folder(folder)
    content["files"].pop("moe.json")
    content["bytes"] = content["files"]["model.pt2"]["bytes"]
    manifests.save(content, folder)
    assert_refused(folder, marker)


def test_every_entry_point_refuses(model, rewritten, tmp_path, capsys):
    folder, marker = rewritten(example_inputs)
    with pytest.raises(RuntimeError, match="nothing that could run code"):
        verify(model, folder)
    model.save(tmp_path / "model.keras")
    for command in (
        ["bench", folder],
        ["compare", tmp_path / "model.keras", folder],
    ):
        assert run_command(list(map(str, command))) == 1
        assert "nothing that could run code" in capsys.readouterr().err
    # `inspect` reads the manifest and runs nothing.
    assert run_command(["inspect", str(folder)]) == 0
    assert not marker.exists()


def test_a_good_artifact_is_loaded(good, model):
    x = np.ones((2, 4, 3), "float32")
    [y] = load(good[1])(x)
    np.testing.assert_allclose(y, to_numpy(model(x)), atol=1e-6)


# Expressions in programs of Keras's layers with unknown sizes.
ARITHMETIC = [
    "Symbol('s21', positive=True, integer=True)",
    "Mul(Integer(-2), Symbol('s41', positive=True, integer=True))",
    "Pow(Symbol('s0', integer=True), Rational(1, 2))",
    "GreaterThan(FloorDiv(Symbol('u0', integer=True), Integer(8)), 3)",
    "L['inputs'][0].size()[1] <= 12",
    "(8*L['inputs'][0].size()[1]) != (16*(L['inputs'][0].size()[1] // 2))",
    "1 + max(0, (-1)*L['x'][0].size()[1]) > 0 or L['x'][1].size()[0] == 1",
]
CODE = [
    "__import__('os')",
    "().__class__",
    "open('a')",
    "Symbol.mro()",
    "Symbol('s1').func",
    "lambda: 1",
    "Integer('s1 + open(1)')",
    "sympify('s1')",
    "L['__class__'].__class__",
    "L['x'].size().__class__",
    "1\n2",
    "eval('s1')",
    "1" * 10_000 + "x",
]


@pytest.mark.parametrize("text", ARITHMETIC)
def test_arithmetic_is_accepted(text):
    assert torch_archive.EXPRESSION.fullmatch(text)


@pytest.mark.parametrize("text", CODE)
def test_code_is_not_arithmetic(text):
    assert not torch_archive.EXPRESSION.fullmatch(text)
