"""Read a part of the data in each process.

N examples, S shards.

    x, y = local_shard(x, y)  # arrays, lists
    part = data_shard()
    dataset.shard(part.count, part.index)  # tf.data
    grain.MapDataset.source(source)[part.index :: part.count]

A TFDS `data_source` is such a `source`. docs/from-laptop-to-cluster.md explains
the meaning of `batch_size` in this case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_moe import checks
from keras_moe.distribution.environment import process_count, process_index


@dataclass(frozen=True)
class DataShard:
    """Identify the part of the data that a process reads.

    Attributes:
        index: Int, index of the part, 0 ... `count` - 1.
        count: Int, number of parts.

    Example:

    ```python
    x = np.arange(10)
    part = keras_moe.distribution.DataShard(index=1, count=2)
    x = keras_moe.distribution.local_shard(x, shard=part)  # 1, 3, 5, 7, 9
    ```
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        """Raise a ValueError if there is no such part."""
        index = checks.check_count("index", self.index)
        if index >= checks.check_positive_int("count", self.count):
            raise ValueError(
                "`index` must be below `count`: parts are counted from 0. "
                f"Received: index={index}, count={self.count}. Lower it."
            )


def data_shard() -> DataShard:
    """Return the part of the data that this process reads.

    There is one part per process; a process that runs alone reads all data. On
    JAX, a `keras.distribution` may spread one replica of the model over several
    processes, which then read the same part, so set the distribution first.

    Example:

    ```python
    part = keras_moe.distribution.data_shard()
    dataset = dataset.shard(part.count, part.index)  # a `tf.data.Dataset`
    ```
    """
    if keras.backend.backend() == "jax":
        distribution = keras.distribution.distribution()
        if distribution is not None:
            count = min(
                distribution.num_model_replicas, distribution.num_processes
            )
            return DataShard(distribution.data_shard_id, count)
    return DataShard(process_index(), process_count())


def local_shard(
    *data: Sequence[Any] | np.ndarray,
    contiguous: bool = False,
    rest: str = "drop",
    shard: DataShard | None = None,
) -> Any:
    """Return this process's part of arrays or lists.

    All parts have the same length, because a process with one more batch than
    the others would wait for them forever. NumPy arrays are not copied, and
    only the part of a memory-mapped array is read.

    Args:
        *data: Arrays `(N, ...)` or lists of length N, with the same N.
        contiguous: Whether a part consists of consecutive examples, which are
            read faster from a disk. If `False` (the default), it consists of
            every S-th example, so that without shuffling the batches of all
            processes together are those of one process.
        rest: `"drop"` (the default) drops the last N mod S examples.
            `"repeat"` pads the parts with the first examples, so that all
            examples are read. Use it for predictions, and cut them to N.
        shard: `DataShard`, the part. `None` (the default) is `data_shard()`.

    Returns:
        The part, or a tuple of parts if several arrays or lists are passed.

    Raises:
        ValueError: If the lengths differ, if there are fewer examples than
            parts, or if an argument is not one of the values above.

    Example:

    ```python
    x, y = keras_moe.distribution.local_shard(x, y)
    model.fit(x, y)
    ```
    """
    checks.check_choice("rest", rest, ("drop", "repeat"))
    checks.check_bool("contiguous", contiguous)
    if shard is not None:
        checks.check_is_a(
            "shard",
            shard,
            DataShard,
            "None or a DataShard",
            "Pass, for instance, DataShard(index=0, count=2).",
        )
    shard = shard or data_shard()
    total = _length(data, shard)
    up = rest == "repeat" and total % shard.count > 0
    size = total // shard.count + up
    if contiguous:
        part = slice(shard.index * size, (shard.index + 1) * size)
    else:
        part = slice(shard.index, size * shard.count, shard.count)
    parts = [_take(one, part, size) for one in data]
    return parts[0] if len(parts) == 1 else tuple(parts)


def _take(data: Any, part: slice, size: int) -> Any:
    """Return a slice of the data, padded to `size` with the first examples."""
    taken = data[part]
    missing = size - len(taken)
    if not missing:
        return taken
    step, start = part.step or 1, part.start
    wanted = [(start + i * step) % len(data) for i in range(size)]
    if hasattr(data, "shape"):
        return data[np.array(wanted)]
    return type(data)(data[i] for i in wanted)


def _length(data: Sequence[Any], shard: DataShard) -> int:
    for one in data:
        if not hasattr(one, "__len__") or isinstance(one, (str, bytes, dict)):
            raise ValueError(
                "`data` must be arrays or lists. Received: "
                f"{type(one).__name__}. Pass, for instance, local_shard(x, y)."
            )
    lengths = {len(one) for one in data}
    if len(lengths) != 1:
        raise ValueError(
            "`data` must be arrays or lists of one length. Received: lengths "
            f"{[len(one) for one in data]}. Pass, for instance, "
            "local_shard(x, y)."
        )
    (total,) = lengths
    if total < shard.count:
        raise ValueError(
            "`data` must have at least one example per process. Received: "
            f"{total} examples for {shard.count} processes. Start fewer "
            "processes."
        )
    return total
