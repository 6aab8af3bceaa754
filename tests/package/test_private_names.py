"""Test that one file per library uses the private API of the library."""

import ast
import functools
import inspect
import pathlib
import pkgutil
import textwrap

import keras
import pytest

import keras_moe
import keras_moe_cli
from keras_moe import _keras

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

ROOT = pathlib.Path(keras_moe.__file__).parent
LIBRARIES = ("keras", "jax", "tensorflow", "torch")
CANARIES = sorted((pathlib.Path(__file__).parent / "private_api").glob("*.py"))
PRIVATE = [ROOT / f"_{library}.py" for library in LIBRARIES]
COMMAND = pathlib.Path(keras_moe_cli.__file__).parent
FILES = sorted({*ROOT.rglob("*.py"), *COMMAND.rglob("*.py")} - {*PRIVATE})
# Private modules whose names have no leading underscore.
MODULES = (
    "jax.extend",
    "jax.interpreters",
    "keras.src",
    "tensorflow.compiler",
    "tensorflow.python",
)
BY_NAME = {"attrgetter", "delattr", "getattr", "hasattr", "setattr"}
# Python documents these names as public.
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}


def is_private(name):
    return name.startswith("_") and name[1:2].isalpha()


def is_own(node):
    """Return whether an attribute is one of `self`, `cls`, or `super()`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined_in(tree):
    """Yield the private names that classes and functions of a file define."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and is_own(node.value):
            if not isinstance(node.ctx, ast.Store):
                continue
            name = node.attr
        else:
            continue
        if is_private(name):
            yield name


def imported_in(tree):
    """Yield each name that a file imports, and its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.asname or a.name, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((a.name, f"{node.module}.{a.name}") for a in node.names)


def used_in(tree):
    """Yield each private name that a file uses, and whether it is its own.

    A name is its own if it is an attribute of `self`, `cls`, or `super()`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr, is_own(node.value)
        elif isinstance(node, (ast.Call, ast.Dict)):
            yield from ((name, False) for name in written_out_in(node))
    for name, dotted in imported_in(tree):
        parts = dotted.split(".")
        if parts[0] in LIBRARIES and (
            dotted.startswith(MODULES) or any(map(is_private, parts))
        ):
            yield name, False


def written_out_in(node):
    """Return private names in strings of a dict or of a call of `getattr`."""
    if isinstance(node, ast.Dict):
        given = node.keys
    else:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        given = node.args if name in BY_NAME else ()
    texts = (getattr(one, "value", None) for one in given)
    return [x for x in texts if isinstance(x, str) and is_private(x)]


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def names_of_the_package():
    return {name for path in FILES for name in defined_in(tree_of(path))}


@pytest.mark.parametrize(
    "path", FILES, ids=lambda p: str(p.relative_to(ROOT.parent))
)
def test_private_api_is_in_one_file_per_library(path):
    tree = tree_of(path)
    here = set(defined_in(tree))
    for name, own in used_in(tree):
        known = names_of_the_package() if own else here
        assert name in known | PUBLIC, (
            f"{path} uses {name}: move it to `keras_moe/_keras.py`, or to the "
            "file of the backend, with a test of its effect"
        )


def test_every_private_name_has_a_test_of_its_effect():
    used = set()
    for path in PRIVATE:
        tree = tree_of(path)
        here = set(defined_in(tree))
        used |= {name for name, _ in used_in(tree)} - here
        # An alias may have the same name as its value.
        used |= {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for name, _ in used_in(node)
        }
    shown = set()
    for path in CANARIES:
        for node in ast.walk(tree_of(path)):
            if getattr(getattr(node, "func", None), "id", "") == "of":
                shown |= {given.value for given in node.args}
    assert shown == used


@functools.cache
def private_names_of(kind):
    """Return the private names that one class defines."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return frozenset()
    return frozenset(defined_in(ast.parse(source)))


def classes():
    """Yield every class of the package that is imported on this backend."""
    for found in pkgutil.walk_packages(keras_moe.__path__, "keras_moe."):
        module = inspect.sys.modules.get(found.name)
        for kind in vars(module).values() if module else ():
            own = getattr(kind, "__module__", "") == found.name
            if inspect.isclass(kind) and own:
                yield kind


def test_no_class_defines_a_private_name_of_keras_by_accident():
    checked = 0
    for kind in classes():
        own, of_keras = set(), set()
        for base in kind.__mro__:
            is_ours = base.__module__.startswith("keras_moe.")
            (own if is_ours else of_keras).update(private_names_of(base))
        both = own & of_keras
        assert both <= _keras.OVERRIDDEN, f"{kind.__name__}: {both}"
        checked += issubclass(kind, keras.layers.Layer) and len(of_keras) > 50
    assert checked > 40
