"""Yield batches of a model's inputs, from arrays or other data of `fit`."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

BATCH_SIZE = 32


def batches_of(data: Any, batch_size: int = BATCH_SIZE) -> Iterator[Any]:
    """Yield batches of a model's inputs.

    Args:
        data: Arrays as a model takes them (one, or a list, tuple, or dict of
            them), which are cut into batches; or an iterable of batches as
            `fit` takes it (`tf.data.Dataset`, `DataLoader`,
            `keras.utils.PyDataset`, a generator), each of which is the inputs
            or `(inputs, targets, ...)`.
        batch_size: int. Examples per batch of arrays. The last batch may have
            fewer. Defaults to 32. An iterable keeps its own batches.

    Raises:
        ValueError: If `data` is neither arrays nor iterable, or if the arrays
            have different lengths.
    """
    if _is_arrays(data):
        yield from _cut(data, batch_size)
        return
    if isinstance(data, keras.utils.PyDataset):
        data = map(data.__getitem__, range(data.num_batches))
    for batch in _iterated(data):
        if isinstance(batch, (list, tuple)):
            batch, *_ = keras.utils.unpack_x_y_sample_weight(tuple(batch))
        yield keras.tree.map_structure(ops.convert_to_tensor, batch)


def _cut(data: Any, batch_size: int) -> Iterator[Any]:
    arrays = keras.tree.map_structure(np.asarray, data)
    sizes = [len(x) for x in keras.tree.flatten(arrays)]
    if len(set(sizes)) > 1:
        raise ValueError(
            "`data` must hold the same number of examples in each array. "
            f"Received: arrays of {sizes} examples. Pass the inputs of a model "
            "alone, without targets."
        )
    for start in range(0, sizes[0], batch_size):
        part = slice(start, start + batch_size)
        yield keras.tree.map_structure(
            lambda x: ops.convert_to_tensor(x[part]),  # noqa: B023
            arrays,
        )


def _is_arrays(data: Any) -> bool:
    parts = [data]
    if isinstance(data, dict):
        parts = list(data.values())
    elif isinstance(data, (list, tuple)):
        parts = list(data)
    is_array = [hasattr(x, "shape") and hasattr(x, "dtype") for x in parts]
    return bool(parts) and all(is_array)


def _iterated(data: Any) -> Iterator[Any]:
    try:
        return iter(data)
    except TypeError as error:
        raise ValueError(
            "`data` must be arrays of the model's inputs, or an iterable of "
            f"batches. Received: {type(data).__name__}. Pass, for instance, "
            "the training inputs."
        ) from error
