"""Each process reads its own part of the data.

N examples, S shards.

    x, y = local_shard(x, y)  # arrays, lists
    part = data_shard()
    dataset.shard(part.count, part.index)  # tf.data
    grain.MapDataset.source(source)[part.index :: part.count]

A TFDS `data_source` is such a `source`. docs/from-laptop-to-cluster.md says
what `batch_size` means then.
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
    """The part of the data that a process reads.

    Attributes:
        index: of the part, 0 ... `count` - 1.
        count: of parts.
    """

    index: int
    count: int

    def __post_init__(self):
        """Raise if there is no such part."""
        index = checks.check_count("index", self.index)
        if index >= checks.check_positive_int("count", self.count):
            raise ValueError(
                "`index` must be below `count`: parts are counted from 0. "
                f"Received: index={index}, count={self.count}. Lower it."
            )


def data_shard() -> DataShard:
    """Returns which part of the data this process reads, of how many.

    One part a process; alone, the whole. On JAX, where a
    `keras.distribution` may spread one replica of the model over several
    processes, these read the same part: set the distribution first.
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
    *data: Sequence | np.ndarray,
    contiguous: bool = False,
    rest: str = "drop",
    shard: DataShard | None = None,
) -> Any:
    """Returns this process's part of arrays or lists.

    Every part has the same length: a process that has a batch more than the
    others would wait for them forever. NumPy arrays are not copied, and of a
    memory-mapped one only the part is read.

    Args:
        *data: arrays `(N, ...)` or lists of N, of equal N.
        contiguous: parts of neighbours; else every S-th example. Every S-th
            keeps the global batches of a process that is alone and does not
            shuffle, in which B examples are B / S of each process; neighbours
            are read faster from a disk.
        rest: `"drop"` leaves out the last N mod S examples; `"repeat"` fills
            up the parts with the first ones, so that all are read (as for
            predictions, which are then cut to N).
        shard: which part; None is `data_shard()`.

    Returns:
        The part, or a tuple of parts where several are passed.

    Raises:
        ValueError: for unequal N, or fewer examples than parts.
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


def _take(data, part, size):
    """A slice of N, filled up to `size` from the first examples on."""
    taken = data[part]
    missing = size - len(taken)
    if not missing:
        return taken
    step, start = part.step or 1, part.start
    wanted = [(start + i * step) % len(data) for i in range(size)]
    if hasattr(data, "shape"):
        return data[np.array(wanted)]
    return type(data)(data[i] for i in wanted)


def _length(data, shard):
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
            "`data` must have an example for each process at least. Received: "
            f"{total} examples for {shard.count} processes. Start fewer."
        )
    return total
