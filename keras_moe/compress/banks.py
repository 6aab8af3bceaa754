"""Read, write, and run the experts of a bank one by one.

E experts, D hidden_dim, F intermediate_dim, R tokens.
"""

import numpy as np
from keras import ops

from keras_moe.layers import Expert
from keras_moe.layers.upcycling import NAMES
from keras_moe.model_surgery.rebuild import assign, to_array


def read_experts(bank: Expert) -> list[dict[str, np.ndarray]]:
    """Return a dict from name to weight for each expert."""
    weights = {name: getattr(bank, name) for name in NAMES}
    arrays = {n: to_array(w) for n, w in weights.items() if w is not None}
    return [
        {name: array[e] for name, array in arrays.items()}
        for e in range(bank.num_experts)
    ]


def write_experts(bank: Expert, experts: list[dict[str, np.ndarray]]) -> None:
    """Set the weights of each expert."""
    for name in experts[0]:
        assign(getattr(bank, name), np.stack([e[name] for e in experts]))


def outputs_of(bank: Expert, tokens: np.ndarray) -> np.ndarray:
    """Return the output of every expert for every token.

    Args:
        bank: Built bank of experts with output width H.
        tokens: float `(R, D)`.

    Returns:
        float32 `(E, R, H)`.
    """
    dtype = bank.up_kernel.dtype
    rows = ops.cast(ops.convert_to_tensor(tokens[None]), dtype)
    outputs: np.ndarray = to_array(bank.run_all(rows)).astype("float32")
    return outputs
