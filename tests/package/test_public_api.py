"""Test the public names, their documentation, and the cost of the import."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import keras
import pytest
from backend import BACKEND

import keras_moe

ROUTERS = set(keras_moe.layers.routers.__all__)
LAYERS = ROUTERS | {
    "CGC",
    "Expert",
    "ExpertLayers",
    "HierarchicalMoE",
    "MixtureOfModels",
    "ModalityEmbedding",
    "MoEBlock",
    "MultiGateMoE",
    "PLE",
    "SoftMoE",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "UncertaintyWeightedModel",
    "UncertaintyWeighting",
}
UNITS = {"ClippedSwiGLU", "GatedUnit"}
TO_BUILD_ON = {"BaseRouter", "LearnedRouter", "TokenBatch"}


def test_all_lists_the_public_names():
    assert set(keras_moe.layers.__all__) == LAYERS | UNITS | TO_BUILD_ON
    assert set(keras_moe.__all__) == LAYERS | UNITS | {
        "Assignment",
        "Ensemble",
        "__version__",
        "callbacks",
        "compress",
        "distribution",
        "ensemble",
        "export",
        "find_blocks",
        "layers",
        "losses",
        "metrics",
        "model_surgery",
        "models",
        "routing",
        "routing_of",
        "training",
    }
    for name in keras_moe.__all__:
        assert hasattr(keras_moe, name)
    assert len(set(keras_moe.__all__)) == len(keras_moe.__all__)


def test_the_list_of_routers_has_every_router():
    """`keras_moe` and `keras_moe.layers` take the names of routers from it."""
    folder = keras_moe.layers.routers
    found = set()
    for file in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
        module = importlib.import_module(file.name)
        found |= {
            name
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, keras_moe.layers.BaseRouter)
        }
    assert found - TO_BUILD_ON == set(folder.__all__)
    for name in folder.__all__:
        router = getattr(folder, name)
        assert getattr(keras_moe.layers, name) is router
        assert getattr(keras_moe, name) is router


def public_objects():
    for module in (
        keras_moe.callbacks,
        keras_moe.compress,
        keras_moe.ensemble,
        keras_moe.layers,
        keras_moe.losses,
        keras_moe.metrics,
        keras_moe.model_surgery,
        keras_moe.models,
        keras_moe.routing,
        keras_moe.training,
        keras_moe.kernels,
    ):
        for name, value in vars(module).items():
            mine = getattr(value, "__module__", "").startswith("keras_moe")
            if mine and callable(value) and not name.startswith("_"):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("value", list(public_objects()))
def test_public_things_are_documented_and_typed(value):
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        for parameter in signature.parameters.values():
            if parameter.name in ("linear", "matmul"):
                continue  # their defaults are functions of the same file
            assert parameter.annotation is not parameter.empty, parameter
        assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", sorted(LAYERS | UNITS - {"GatedUnit"}))
def test_layers_are_registered_under_the_packages_name(name):
    cls = getattr(keras_moe, name)
    assert keras.saving.get_registered_name(cls) == f"keras_moe>{name}"


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert keras_moe.__version__ == version("keras-moe")


def test_importing_needs_keras_and_its_backend_only():
    """Other imports, above all expensive ones, wait for their first use."""
    program = """
import sys, json
import keras
before = set(sys.modules)
import keras_moe
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    out = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    modules = json.loads(out.splitlines()[-1])
    new = {name.split(".")[0] for name in modules}
    expected = {"keras_moe", BACKEND}  # the backend may import more modules
    assert new - sys.stdlib_module_names <= expected
