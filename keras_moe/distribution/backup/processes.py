"""Read and assign variables, and exchange bytes, in a backup's processes."""

import keras
import numpy as np

from keras_moe.distribution.backup.random_states import (
    Arrays,
    random_states,
    set_random_states,
)
from keras_moe.types import Tensor


class Processes:
    """Use a single process; a subclass per backend uses several.

    Attributes:
        index: Index of this process. Process 0 is the chief, the only one that
            writes.
        count: Number of processes.
        replicas: Number of replicas of the model in this process, each with
            its own metric states.
    """

    index = 0
    count = 1
    replicas = 1

    def gather(self, row: np.ndarray) -> list[np.ndarray]:
        """Return the rows `(N,)`, uint8, of all processes, with the same N."""
        return [row]

    def read(self, variable: keras.Variable) -> np.ndarray:
        """Return the whole array of a variable, also if it is sharded."""
        raise NotImplementedError

    def assign(self, variable: keras.Variable, array: np.ndarray) -> None:
        """Assign to a variable its part of a whole array."""
        variable.assign(array)

    def read_own(self, metric: keras.Variable) -> np.ndarray:
        """Return the metric states of this process's replicas, `(R, ...)`."""
        return self.read(metric)[None]

    def assign_own(self, metric: keras.Variable, rows: np.ndarray) -> None:
        """Assign to each replica's variable what `read_own` returned."""
        self.assign(metric, rows[0])

    def assign_whole(self, metric: keras.Variable, whole: np.ndarray) -> None:
        """Assign states to all replicas that combine to `whole`."""
        self.assign(metric, whole)

    def place(self, array: np.ndarray, like: Tensor) -> Tensor:
        """Return a whole array as a tensor with the layout of another."""
        raise NotImplementedError

    def shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Return the shape of a variable's whole array."""
        return tuple(variable.shape)

    def build_optimizer(self, model: keras.Model) -> None:
        """Make the optimizer's variables, on the devices of the model's."""
        model.optimizer.build(model.trainable_variables)

    def random(self) -> Arrays:
        """Return the states of this process's random generators."""
        return random_states()

    def set_random(self, states: Arrays) -> None:
        """Set the generators to the states that `random` returned."""
        set_random_states(states)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return the bytes of each process, which may differ in length."""
        size = np.array([len(data)], "int64")
        sizes = [
            int(s.view("int64")[0]) for s in self.gather(size.view("uint8"))
        ]
        row = np.zeros(max(1, *sizes), "uint8")  # TensorFlow crashes at 0
        row[: len(data)] = np.frombuffer(data, "uint8")
        rows = self.gather(row)
        return [
            np.asarray(row, "uint8")[:size].tobytes()
            for row, size in zip(rows, sizes, strict=True)
        ]

    def from_chief(self, data: bytes) -> bytes:
        """Return the bytes of the chief in every process."""
        return self.gather_bytes(data if self.index == 0 else b"")[0]

    def agree(self, error: BaseException | None) -> None:
        """Raise in every process if any process has an error.

        Args:
            error: The error of this process, or `None`.

        Raises:
            OSError: If another process has an error. The message names both.
                The process that has the error raises it unchanged.
        """
        if self.count == 1:
            if error:
                raise error
            return
        text = f"{type(error).__name__}: {error}" if error else ""
        texts = self.gather_bytes(text.encode())
        if error:
            raise error
        for index, other in enumerate(texts):
            if other:
                raise OSError(f"Process {index} failed with {other.decode()}")


def processes_of(model: keras.Model) -> Processes:
    """Return the processes that train a model, on the running backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        from keras_moe.distribution.backup.jax_processes import JaxProcesses

        return JaxProcesses()
    if backend == "torch":
        from keras_moe.distribution.backup.torch_processes import TorchProcesses

        return TorchProcesses(model)
    from keras_moe.distribution.backup import tensorflow_processes

    return tensorflow_processes.TensorFlowProcesses(model.distribute_strategy)
