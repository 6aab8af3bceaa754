"""Read and set the states of Python's and NumPy's generators, as arrays.

On JAX, Keras shuffles arrays with NumPy's generator, and a `PyDataset` with
Python's.
"""

import random
from typing import TypeAlias

import numpy as np

Arrays: TypeAlias = dict[str, np.ndarray]


def random_states() -> Arrays:
    """Return the states of both generators by name."""
    version, words, gauss = random.getstate()
    _, keys, *rest = np.random.get_state()
    return {
        "python": np.array([version, *words], "int64"),
        "python_gauss": np.array([] if gauss is None else [gauss]),
        "numpy": np.array(keys),
        "numpy_rest": np.array(rest),
    }


def set_random_states(states: Arrays) -> None:
    """Set both generators to the states that `random_states` returned."""
    version, *words = states["python"].tolist()
    gauss = states["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    position, has_gauss, cached = states["numpy_rest"].tolist()
    keys = states["numpy"]
    np.random.set_state(
        ("MT19937", keys, int(position), int(has_gauss), cached)
    )
