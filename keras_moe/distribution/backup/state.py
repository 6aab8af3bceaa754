"""What a training is: its variables, and what each process has of its own."""

import io
import json
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_moe.distribution.backup.processes import Processes
from keras_moe.distribution.backup.random_states import Arrays

Path = pathlib.Path
ARRAYS = "arrays.npz"


class Own(NamedTuple):
    """What a process has of its own.

    Attributes:
        records: `[epoch, logs]` of each epoch that is over.
        logs: of the last step of the epoch that is not, or `{}`.
        epoch_random: generators' states at that epoch's begin.
        random: the same now.
        metrics: the metrics' variables, in order, where the epoch is not over.
    """

    records: list[list[Any]]
    logs: dict[str, float]
    epoch_random: Arrays
    random: Arrays
    metrics: list[np.ndarray]


def describe(
    model: keras.Model, processes: Processes, optimizer: bool = True
) -> dict:
    """Returns what tells one model, and its optimizer, from another."""
    variables = variables_of(model) if optimizer else own_variables_of(model)
    return {
        "model": model.name,
        "optimizer": type(model.optimizer).__name__ if optimizer else None,
        "weights": len(own_variables_of(model)),
        "variables": [
            [variable.path, list(processes.shape(variable))]
            for variable in variables
        ],
    }


def check_same(directory: Path, saved: dict, mine: dict) -> None:
    """Raises where the backup is another model's.

    Names may differ: they count what was made before in the process. Without
    an optimizer of mine, those of its variables are not looked at.
    """
    there, here = saved["variables"], mine["variables"]
    alone = mine["optimizer"] is None
    if alone:
        there = there[: saved["weights"]]
    same = [shape for _, shape in there] == [shape for _, shape in here]
    if same and (alone or saved["optimizer"] == mine["optimizer"]):
        return
    raise ValueError(
        "`directory` must hold the backup of the model that is trained. "
        f"Received: directory={str(directory)!r}, which holds "
        f"{_say(saved)}, and {_say(mine)} to train; {_difference(there, here)}."
        " Pass another directory, or delete this one to start anew."
    )


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Weights, statistics, states of seeds, the optimizer's variables."""
    return [*own_variables_of(model), *model.optimizer.variables]


def own_variables_of(model: keras.Model) -> list[keras.Variable]:
    """The same without the optimizer's, which are the last."""
    return [*model.trainable_variables, *model.non_trainable_variables]


def arrays_of(
    model: keras.Model, processes: Processes
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each variable's name and whole array, one at a time.

    Every process must go through all of them: some are gathered from all.
    """
    for number, variable in enumerate(variables_of(model)):
        array = processes.read(variable)
        if array.dtype.kind == "V":  # bfloat16 and float8, unknown to NumPy
            array = array.astype("float32")
        yield f"{number:05d}:{variable.path.replace('/', '.')}", array


def write_arrays(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes an `.npz`, one array in memory at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def load_arrays(
    path: Path, variables: Sequence[keras.Variable], processes: Processes
) -> None:
    """Gives each variable its array of the file, or its part of it."""
    with np.load(path, allow_pickle=False) as arrays:
        names = sorted(arrays.files)
        for name, variable in zip(names, variables, strict=False):
            processes.assign(variable, arrays[name])


def pack(own: Own) -> bytes:
    """Returns the bytes of an `.npz`."""
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
    """Returns what `pack` made a file's bytes of."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    records, logs = json.loads(arrays.pop("text").tobytes())

    def part(prefix):
        return {
            name.removeprefix(prefix): array
            for name, array in sorted(arrays.items())
            if name.startswith(prefix)
        }

    return Own(
        records,
        logs,
        part("epoch_random."),
        part("random."),
        list(part("metric.").values()),
    )


def _say(described):
    variables = described["variables"]
    numbers = sum(int(np.prod(shape)) for _, shape in variables)
    optimizer = described["optimizer"] or "no optimizer"
    return (
        f"model {described['model']!r} with {optimizer}, {len(variables)} "
        f"variables, {numbers} numbers"
    )


def _difference(there, here):
    for (path, shape), (other, found) in zip(there, here, strict=False):
        if shape != found:
            return f"{path} {tuple(shape)} there is {other} {tuple(found)} here"
    return "one has more variables, or another optimizer, than the other"
