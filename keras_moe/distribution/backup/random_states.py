"""The states of Python's and NumPy's own generators, as arrays.

Keras shuffles arrays by NumPy's under JAX, a `PyDataset` by Python's.
"""

import random

import numpy as np

Arrays = dict[str, np.ndarray]


def random_states() -> Arrays:
    """Returns both generators' states by name."""
    version, words, gauss = random.getstate()
    _, keys, *rest = np.random.get_state()
    return {
        "python": np.array([version, *words], "int64"),
        "python_gauss": np.array([] if gauss is None else [gauss]),
        "numpy": np.array(keys),
        "numpy_rest": np.array(rest),
    }


def set_random_states(states: Arrays) -> None:
    """Puts both generators into the states that `random_states` returned."""
    version, *words = states["python"].tolist()
    gauss = states["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    position, has_gauss, cached = states["numpy_rest"].tolist()
    keys = states["numpy"]
    np.random.set_state(
        ("MT19937", keys, int(position), int(has_gauss), cached)
    )
