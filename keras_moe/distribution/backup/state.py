"""Write and read the arrays of a save, and the state of each process."""

import contextlib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import keras
import numpy as np

from keras_moe.distribution.backup import generations
from keras_moe.distribution.backup.processes import Processes
from keras_moe.distribution.backup.random_states import Arrays

Path = pathlib.Path
ARRAYS = "arrays.npz"


class Own(NamedTuple):
    """Hold the state of one process.

    Attributes:
        records: List of `[epoch, logs]` of each finished epoch.
        logs: Logs of the last step of the unfinished epoch, or `{}`.
        epoch_random: States of the generators at the start of that epoch.
        random: States of the generators now.
        metrics: Metric states within an epoch, one array `(R, ...)` per
            variable; see `MetricStates`. Empty at the end of an epoch.
    """

    records: list[list[Any]]
    logs: dict[str, float]
    epoch_random: Arrays
    random: Arrays
    metrics: list[np.ndarray]


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of a model, and then those of its optimizer."""
    return [*own_variables_of(model), *model.optimizer.variables]


def own_variables_of(model: keras.Model) -> list[keras.Variable]:
    """Return the weights, statistics, and states of seeds of a model."""
    return [*model.trainable_variables, *model.non_trainable_variables]


def arrays_of(
    model: keras.Model, processes: Processes
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the whole array of each variable, one at a time.

    Every process must iterate to the end, because some arrays are gathered from
    all processes.
    """
    for number, variable in enumerate(variables_of(model)):
        array = processes.read(variable)
        if array.dtype.kind == "V":  # bfloat16 and float8, unknown to NumPy
            array = array.astype("float32")
        yield f"{number:05d}:{variable.path.replace('/', '.')}", array


def write_arrays(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write an `.npz` file with one array in memory at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def shapes_of(path: Path) -> list[list[int]]:
    """Return the shapes of the arrays that `write_arrays` wrote, in order.

    Raises:
        ValueError: If the file is malformed.
    """
    with _reading(path) as data:
        archive = zipfile.ZipFile(data)
        return [_shape(archive, name) for name in sorted(archive.namelist())]


def load_arrays(
    path: Path, variables: Sequence[keras.Variable], processes: Processes
) -> None:
    """Assign to each variable its array of the file, or its part of it."""
    with np.load(path, allow_pickle=False) as arrays:
        names = sorted(arrays.files)
        for name, variable in zip(names, variables, strict=False):
            processes.assign(variable, arrays[name])


def pack(own: Own) -> bytes:
    """Return the state of a process as the bytes of an `.npz` file."""
    text = json.dumps([own.records, own.logs]).encode()
    arrays: dict[str, Any] = {
        "text": np.frombuffer(text, "uint8"),
        **{f"epoch_random.{k}": v for k, v in own.epoch_random.items()},
        **{f"random.{k}": v for k, v in own.random.items()},
        **{f"metric.{i:05d}": v for i, v in enumerate(own.metrics)},
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def unpack(path: Path) -> Own:
    """Return the state of a process from a file with the bytes of `pack`.

    Raises:
        ValueError: If the file is malformed.
    """
    with _reading(path) as data:
        arrays = dict(np.load(data, allow_pickle=False))
        records, logs = json.loads(arrays.pop("text").tobytes())
        if records:
            int(records[-1][0])
        return Own(
            records,
            dict(logs),
            _part(arrays, "epoch_random."),
            _part(arrays, "random."),
            list(_part(arrays, "metric.").values()),
        )


def _shape(archive: zipfile.ZipFile, name: str) -> list[int]:
    """Return the shape of an array of numbers from its file's header."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.kind not in "biuf":
        raise ValueError(f"{name} contains {dtype}")
    return list(shape)


def own_name(index: int) -> str:
    """Return the name of the file with the state of a process."""
    return f"process-{index}.npz"


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in sorted(arrays.items())
        if name.startswith(prefix)
    }


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Raise a ValueError for every error of a malformed file inside."""
    with open(path, "rb") as data:
        try:
            yield data
        except Exception as error:  # of zipfile, zlib, NumPy, json
            errno = getattr(error, "errno", None)
            if isinstance(error, OSError) and errno not in generations.TORN:
                raise
            raise ValueError(
                f"{path.name} is malformed: {type(error).__name__}: {error}"
            ) from error
