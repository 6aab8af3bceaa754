"""Check that the packages that the command needs are installed.

This file must not import Keras.
"""

import importlib.util

from keras_moe_cli.exit_codes import MISUSED, fail

# The packages of the extra `cli`.
EXTRA = ("typer", "rich")
# The packages that Keras imports with each of its backends.
IMPORTED = {
    "jax": ("jax",),
    "tensorflow": ("tensorflow",),
    "torch": ("torch",),
    "numpy": ("jax", "scipy"),
    "openvino": ("openvino", "scipy"),
}
# The backends that keras_moe has an extra for.
WITH_EXTRA = ("jax", "tensorflow", "torch")


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def check_extra() -> None:
    """Exit if a package of the extra `cli` is missing."""
    for package in EXTRA:
        if not is_installed(package):
            fail(
                f"the command needs {package}. Run "
                'pip install "keras-moe[cli]".'
            )


def check_backend(backend: str) -> None:
    """Exit if Keras has no such backend, or if a package of it is missing."""
    if backend not in IMPORTED:
        fail(
            f"`KERAS_BACKEND` must be one of {', '.join(IMPORTED)}. Received: "
            f"KERAS_BACKEND={backend!r}. Unset it, or correct it.",
            MISUSED,
        )
    if missing := [p for p in IMPORTED[backend] if not is_installed(p)]:
        extra = backend if backend in WITH_EXTRA else "jax"
        fail(
            f"Keras's backend {backend} needs {' and '.join(missing)}. Run "
            f'pip install "keras-moe[{extra}]", or set KERAS_BACKEND to an '
            "installed backend."
        )
