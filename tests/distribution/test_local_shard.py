"""Test the part of the data that each process reads.

N examples, S shards.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND
from hypothesis import given
from hypothesis import strategies as st

from keras_moe.distribution import data as shards
from keras_moe.distribution.data import DataShard, data_shard, local_shard


def test_alone_the_part_is_the_whole():
    assert data_shard() == DataShard(0, 1)
    assert local_shard([3, 4, 5]) == [3, 4, 5]


@given(
    total=st.integers(0, 40),
    count=st.integers(1, 7),
    contiguous=st.booleans(),
    rest=st.sampled_from(["drop", "repeat"]),
    as_list=st.booleans(),
)
def test_shards_are_equal_and_whole(total, count, contiguous, rest, as_list):
    """Together, the shards have the first S * floor(N / S) examples once.

    With `rest="repeat"`, they have all N examples, and the first
    S * ceil(N / S) - N ones again.
    """
    whole = list(range(total)) if as_list else np.arange(total)
    if total < count:
        with pytest.raises(ValueError, match="`data`"):
            local_shard(whole, shard=DataShard(0, count))
        return
    parts = [
        local_shard(
            whole, contiguous=contiguous, rest=rest, shard=DataShard(i, count)
        )
        for i in range(count)
    ]
    assert {type(part) for part in parts} == {type(whole)}
    assert len({len(part) for part in parts}) == 1
    size = total // count if rest == "drop" else -(-total // count)
    expected = [i % total for i in range(size * count)]
    order = np.concatenate(parts) if contiguous else np.stack(parts, 1).ravel()
    assert order.tolist() == expected


def test_shards_keep_the_global_batches():
    """Batch b of 4 rows consists of batch b of 2 rows of each process."""
    x, y = np.arange(12), np.arange(12) * 10
    both = [local_shard(x, y, shard=DataShard(i, 2)) for i in range(2)]
    for b in range(3):
        for k, whole in enumerate((x, y)):
            parts = [part[k][2 * b : 2 * b + 2] for part in both]
            batch = whole[4 * b : 4 * b + 4]
            assert sorted(np.concatenate(parts)) == batch.tolist()
    assert np.shares_memory(both[0][0], x)


def test_shards_of_unequal_lengths():
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        local_shard([1, 2, 3], np.ones((4, 2)))
    with pytest.raises(ValueError, match="`rest`"):
        local_shard([1, 2, 3], rest="keep")


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
@pytest.mark.parametrize(
    "replicas, expected", [(8, (3, 4)), (4, (3, 4)), (2, (1, 2)), (1, (0, 1))]
)
def test_processes_of_one_replica_read_the_same(
    monkeypatch, replicas, expected
):
    """Process 3 of 4 reads the last shard, as do the others of its replica."""

    class Mesh(keras.distribution.DataParallel):
        num_processes, _process_id = 4, 3
        num_model_replicas = replicas

        def __init__(self):
            pass

    monkeypatch.setattr(keras.distribution, "distribution", Mesh)
    assert data_shard() == DataShard(*expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data")
def test_tf_data_reads_a_shard(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(shards, "process_index", lambda: 1)
    monkeypatch.setattr(shards, "process_count", lambda: 3)
    part = data_shard()
    dataset = tf.data.Dataset.range(10).shard(part.count, part.index)
    assert [int(x) for x in dataset] == [1, 4, 7]
    assert list(local_shard(range(9))) == [1, 4, 7]


@pytest.mark.skipif(BACKEND != "torch", reason="grain needs no backend")
def test_grain_reads_a_shard(monkeypatch):
    grain = pytest.importorskip("grain")
    monkeypatch.setattr(shards, "process_index", lambda: 1)
    monkeypatch.setattr(shards, "process_count", lambda: 3)
    part = data_shard()
    dataset = grain.MapDataset.source(range(10))[part.index :: part.count]
    assert list(dataset) == [1, 4, 7]
