"""Read and assign arrays of which each JAX process holds some shards."""

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from keras_moe.distribution.backup.processes import Processes
from keras_moe.types import Tensor


class JaxProcesses(Processes):
    """Use the processes that `keras.distribution.initialize` joined.

    See `Processes`.
    """

    def __init__(self) -> None:
        self.index = jax.process_index()
        self.count = jax.process_count()

    def gather(self, row: np.ndarray) -> list[np.ndarray]:
        if self.count == 1:
            return [row]
        return list(multihost_utils.process_allgather(row))

    def read(self, variable: keras.Variable) -> np.ndarray:
        value = variable.value
        if value.is_fully_addressable:
            return np.asarray(value)
        if value.is_fully_replicated:
            return np.asarray(value.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))

    def assign(self, variable: keras.Variable, array: np.ndarray) -> None:
        variable.assign(self.place(array, like=variable.value))

    def place(self, array: np.ndarray, like: Tensor) -> Tensor:
        """Return an array with the layout of `like`.

        Each process puts only its own shards on its devices.
        """
        array = np.asarray(array, like.dtype)
        return jax.make_array_from_callback(
            array.shape, like.sharding, lambda index: array[index]
        )
