"""The processes that train together, as a backup needs them."""

import keras
import numpy as np

from keras_moe.distribution.backup.random_states import (
    Arrays,
    random_states,
    set_random_states,
)
from keras_moe.types import Tensor


class Processes:
    """One process, alone; the backends' own subclasses know of more.

    Attributes:
        index: of this process; 0 is the chief, the only one that writes.
        count: how many there are.
        replicas: of the model in this process, which count metrics apart.
    """

    index = 0
    count = 1
    replicas = 1

    def gather(self, row: np.ndarray) -> list[np.ndarray]:
        """Returns the rows `(N,)` uint8 of all processes, N equal."""
        return [row]

    def read(self, variable: keras.Variable) -> np.ndarray:
        """Returns the whole array of a variable, wherever its parts are."""
        raise NotImplementedError

    def assign(self, variable: keras.Variable, array: np.ndarray) -> None:
        """Gives a variable its part of a whole array."""
        variable.assign(array)

    def read_own(self, metric: keras.Variable) -> np.ndarray:
        """Return what each replica of this process has counted, `(R, ...)`."""
        return self.read(metric)[None]

    def assign_own(self, metric: keras.Variable, rows: np.ndarray) -> None:
        """Give each replica's variable what `read_own` returned."""
        self.assign(metric, rows[0])

    def assign_whole(self, metric: keras.Variable, whole: np.ndarray) -> None:
        """Give the replicas of all processes what is `whole` combined."""
        self.assign(metric, whole)

    def place(self, array: np.ndarray, like: Tensor) -> Tensor:
        """Returns a whole array as a tensor with the layout of another."""
        raise NotImplementedError

    def shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Returns the shape of a variable's whole array."""
        return tuple(variable.shape)

    def build_optimizer(self, model: keras.Model) -> None:
        """Makes the optimizer's variables, where the model's are."""
        model.optimizer.build(model.trainable_variables)

    def random(self) -> Arrays:
        """Returns the states of this process's generators."""
        return random_states()

    def set_random(self, states: Arrays) -> None:
        """Puts the generators into the states that `random` returned."""
        set_random_states(states)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Returns what each process gave, of whatever length."""
        size = np.array([len(data)], "int64")
        sizes = [
            int(s.view("int64")[0]) for s in self.gather(size.view("uint8"))
        ]
        row = np.zeros(max(1, *sizes), "uint8")  # TensorFlow's dies of 0
        row[: len(data)] = np.frombuffer(data, "uint8")
        rows = self.gather(row)
        return [
            np.asarray(row, "uint8")[:size].tobytes()
            for row, size in zip(rows, sizes, strict=True)
        ]

    def from_chief(self, data: bytes) -> bytes:
        """Returns what the chief gave, on every process."""
        return self.gather_bytes(data if self.index == 0 else b"")[0]

    def agree(self, error: BaseException | None) -> None:
        """Raises on every process where any has an error.

        Raises:
            OSError: that names the process and its error; the error itself on
                the process that has it.
        """
        if self.count == 1:
            if error:
                raise error
            return
        said = f"{type(error).__name__}: {error}" if error else ""
        everybody = self.gather_bytes(said.encode())
        if error:
            raise error
        for index, other in enumerate(everybody):
            if other:
                raise OSError(f"Process {index} failed with {other.decode()}")


def processes_of(model: keras.Model) -> Processes:
    """Returns the processes that train `model`, by the running backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        from keras_moe.distribution.backup.jax_processes import JaxProcesses

        return JaxProcesses()
    if backend == "torch":
        from keras_moe.distribution.backup.torch_processes import TorchProcesses

        return TorchProcesses(model)
    from keras_moe.distribution.backup import tensorflow_processes

    return tensorflow_processes.TensorFlowProcesses(model.distribute_strategy)
