"""Mark the tests of private names, which `test_private_names.py` counts."""

import pytest
from backend import BACKEND

ALL = ("jax", "tensorflow", "torch")


def of(*names, backends=ALL):
    """Mark a test of the effect of private names, on these backends."""
    return pytest.mark.skipif(
        BACKEND not in backends, reason=f"{names} on {backends}"
    )
