"""JAX's processes: arrays of which each process holds some shards."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from keras_moe.distribution.backup.processes import Processes


class JaxProcesses(Processes):
    """Those that `keras.distribution.initialize` joined; see `Processes`."""

    def __init__(self):
        self.index = jax.process_index()
        self.count = jax.process_count()

    def gather(self, row):
        if self.count == 1:
            return [row]
        return list(multihost_utils.process_allgather(row))

    def read(self, variable):
        value = variable.value
        if value.is_fully_addressable:
            return np.asarray(value)
        if value.is_fully_replicated:
            return np.asarray(value.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))

    def assign(self, variable, array):
        variable.assign(self.place(array, like=variable.value))

    def place(self, array, like):
        """Returns an array laid out as `like` is.

        Each process puts its own shards onto its devices and no more.
        """
        array = np.asarray(array, like.dtype)
        return jax.make_array_from_callback(
            array.shape, like.sharding, lambda index: array[index]
        )
