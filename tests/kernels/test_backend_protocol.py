"""Each backend's folder provides what `kernels/protocol/` lists."""

import ast
import inspect
import pathlib

import pytest
from backend import BACKEND

from keras_moe import kernels
from keras_moe.kernels import generic, protocol
from keras_moe.kernels.backend import backend

FOLDER = pathlib.Path(kernels.__file__).parent
LISTED = {
    name: member
    for part in protocol.Backend.__mro__
    for name, member in vars(part).items()
    if not name.startswith("_")
}
FUNCTIONS = {n: m for n, m in LISTED.items() if inspect.isfunction(m)}
# Files, other than formulations, whose functions `__init__.py` re-exports.
PROVIDING = (
    "exchange",
    "layer_hooks",
    "memory",
    "programs",
    "recomputation",
    "replicas",
    "row_ops",
    "varying",
)
# Public functions in these files that only the backend's other files use.
OF_THE_FOLDER = {
    "jax": {"layout_of"},
    "tensorflow": set(),
    "torch": {"empty_gradient", "exchange_rows", "gather_shards"},
}


def parameters_of(function):
    return [
        (p.name, p.kind, p.default is p.empty)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


@pytest.mark.parametrize("provider", [backend, generic], ids=["own", "generic"])
def test_all_that_is_listed_is_provided(provider):
    assert set(LISTED) <= set(vars(provider))
    for name, listed in FUNCTIONS.items():
        provided = parameters_of(getattr(provider, name))
        assert provided == parameters_of(listed), name


def test_every_formulation_has_both_kernels():
    modules = [*backend.FORMULATIONS.values(), backend.quantized_formulation()]
    for module in modules:
        assert callable(module.grouped_matmul)
        assert callable(module.grouped_ffn)


@pytest.mark.parametrize("name", ["jax", "tensorflow", "torch"])
@pytest.mark.one_backend
def test_nothing_is_provided_that_is_not_listed(name):
    """A misspelled function would leave the slow default in place."""
    public = set()
    for stem in PROVIDING:
        path = FOLDER / name / f"{stem}.py"
        if path.exists():
            body = ast.parse(path.read_text()).body
            found = {n.name for n in body if isinstance(n, ast.FunctionDef)}
            public |= {n for n in found if not n.startswith("_")}
    assert public - OF_THE_FOLDER[name] <= set(FUNCTIONS)
    imported = imports_of(FOLDER / name / "__init__.py")
    assert public - OF_THE_FOLDER[name] <= imported["own"]
    # The default replaces no function that the folder defines.
    assert not imported["generic"] & public


def imports_of(path):
    """Return the names that a folder imports: its own and the defaults."""
    found = {"own": set(), "generic": set()}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            is_default = node.module == generic.__name__
            place = "generic" if is_default else "own"
            found[place] |= {alias.name for alias in node.names}
    return found


def test_the_running_backend_is_selected():
    assert backend.__name__ == f"keras_moe.kernels.{BACKEND}"
