"""Test that modules of the package import only modules of lower floors."""

import ast
import pathlib

import pytest

import keras_moe
import keras_moe_cli

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

ROOT = pathlib.Path(keras_moe.__file__).parent
FLOORS = {
    "checks": -1,
    "files": -1,
    "_keras": -2,
    "_jax": -2,
    "_tensorflow": -2,
    "_torch": -2,
    "types": -3,
    "kernels": 0,
    "routing": 1,
    "dispatch": 1,
    "losses": 1,
    "metrics": 1,
    "layers": 2,
    "model_surgery": 3,
    "callbacks": 4,
    "compress": 4,
    "distribution": 4,
    "ensemble": 4,
    "training": 4,
    "models": 4,
    "export": 4,
    "__init__": 5,
}
FILES = sorted(ROOT.rglob("*.py"))
COMMAND = pathlib.Path(keras_moe_cli.__file__).parent
BACKENDS = {"jax", "tensorflow", "torch"}
# Files that import a backend because their job depends on it.
BACKENDS_OWN_JOBS = {
    "distribution/agreement.py",
    "distribution/environment.py",
    "distribution/saving.py",
    "export/runtimes.py",
    "export/torch_archive.py",
    "export/writers.py",
}
# Rooms in which a file that imports a backend must have the backend's name.
NAMED = {"kernels", "distribution"}
# The files of private API, and the backend of each.
PRIVATE = {f"_{backend}": backend for backend in BACKENDS}


def room_of(path):
    """Return the module or folder right below the package of a file."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    """Yield every dotted name that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    room = room_of(path)
    assert room in FLOORS, f"{room} has no floor: add it to FLOORS"
    for name in imports_of(path):
        if not name.startswith("keras_moe."):
            continue
        other = name.split(".")[1]
        if other == room or room == "__init__":
            continue
        assert FLOORS[other] < FLOORS[room], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_its_own_kernel_file_imports_a_backend(path):
    for name in imports_of(path):
        assert not name.startswith("keras.src"), f"{path} imports {name}"
        backend = name.split(".")[0]
        if backend in BACKENDS:
            if str(path.relative_to(ROOT)) in BACKENDS_OWN_JOBS:
                continue
            if PRIVATE.get(room_of(path)) == backend:
                continue
            assert room_of(path) in NAMED, f"{path} imports {name}"
            mine = path.parent.name == backend or path.stem.startswith(backend)
            assert mine, f"{path} imports {name}"


def test_every_floor_has_files():
    assert {room_of(path) for path in FILES} == set(FLOORS)


def test_the_command_is_above_all_floors():
    for path in FILES:
        for name in imports_of(path):
            assert name.split(".")[0] != "keras_moe_cli", f"{path}: {name}"


def test_the_command_imports_no_backend():
    for path in sorted(COMMAND.rglob("*.py")):
        for name in imports_of(path):
            assert not name.startswith("keras.src"), f"{path}: {name}"
            assert name.split(".")[0] not in BACKENDS, f"{path}: {name}"


def test_file_names_are_unique():
    """Only the kernels of the backends may have equal file names."""
    twins = set((ROOT / "kernels").rglob("*.py"))
    names = [path.name for path in FILES if path not in twins]
    names += {path.name for path in twins}
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated == {"__init__.py"}


def test_the_commands_file_names_differ_from_the_packages():
    names = {path.name for path in COMMAND.rglob("*.py")}
    shared = names & {path.name for path in FILES}
    assert shared == {"__init__.py"}
