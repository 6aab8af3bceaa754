"""Joining a job, and reading one's part of the data.

N examples, S shards.
"""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import yaml
from backend import BACKEND
from hypothesis import given
from hypothesis import strategies as st

from keras_moe.distribution import data as shards
from keras_moe.distribution.data import DataShard, data_shard, local_shard
from keras_moe.distribution.environment import (
    initialize,
    process_count,
    process_index,
)
from keras_moe.distribution.jobs import CLUSTERS, job_text
from keras_moe.distribution.processes import run_together
from keras_moe.distribution.ray_workers import launch_on_ray
from keras_moe.distribution.slurm import hosts_of, read_slurm_job, tasks_of
from keras_moe.distribution.variables import (
    BACKENDS,
    Job,
    read_job,
    write_job,
)

ADDRESSES = ("one:700", "one:701", "two:702")
SLURM = {
    "SLURM_JOB_ID": "30007",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "node[08-09]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}


def test_alone_nothing_is_joined():
    assert initialize() is False
    assert (process_index(), process_count()) == (0, 1)
    assert data_shard() == DataShard(0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_written_is_read(backend):
    """Torch and JAX are told one address, TensorFlow no place on its host."""
    read = read_job(write_job(Job(2, 3, 1, ADDRESSES), backend), backend)
    assert (
        read
        == {
            "jax": Job(2, 3, 0, ADDRESSES[:1]),
            "tensorflow": Job(2, 3, 0, ADDRESSES),
            "torch": Job(2, 3, 1, ADDRESSES[:1]),
        }[backend]
    )
    assert read_job({"HOME": "/"}, backend) is None


def test_a_slice_of_tpus_tells_jax_the_rest():
    variables = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
    assert read_job(variables, "jax") == Job(1, 2)
    slices = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}
    assert read_job({**variables, **slices}, "jax") == Job(5, 6)
    assert read_job({"TPU_WORKER_HOSTNAMES": "localhost"}, "jax") is None


def test_a_chief_comes_first():
    config = {
        "cluster": {"chief": ["c:1"], "worker": ["w:1", "w:2"]},
        "task": {"type": "worker", "index": 1},
    }
    job = Job(2, 3, 0, ("c:1", "w:1", "w:2"))
    assert read_job({"TF_CONFIG": json.dumps(config)}, "tensorflow") == job


@pytest.mark.parametrize(
    "backend, variables, words",
    [
        ("tensorflow", {"TF_CONFIG": "{"}, "`TF_CONFIG`"),
        ("tensorflow", {"TF_CONFIG": "[]"}, "`TF_CONFIG`"),
        (
            "tensorflow",
            {
                "TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, '
                '"task": {"type": "worker", "index": 1}}'
            },
            "no address",
        ),
        ("torch", {"RANK": "0", "WORLD_SIZE": "2"}, "`MASTER_ADDR`"),
        ("jax", {"KERAS_DISTRIBUTION_NUM_PROCESSES": "two"}, "PROCESS_ID"),
        (
            "jax",
            {
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": "-1",
            },
            "an integer",
        ),
    ],
)
def test_half_a_job_is_none(backend, variables, words):
    with pytest.raises(ValueError, match=words):
        read_job(variables, backend)


def test_slurms_variables():
    """30007 mod 15000 + 15000 = 15007 is the first port."""
    addresses = ("node08:15007", "node08:15008", "node09:15007")
    assert read_slurm_job(SLURM) == Job(2, 3, 0, addresses)
    # A shell of salloc: one task, whatever the job has.
    assert read_slurm_job({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    # A batch script is no step.
    batch = {k: v for k, v in SLURM.items() if "STEP" not in k}
    assert read_slurm_job(batch) is None


def test_slurms_lists():
    assert hosts_of("a") == ["a"]
    assert hosts_of("a,b-1") == ["a", "b-1"]
    spelled = ["n09-x", "n10-x", "n3-x", "m1", "m2"]
    assert hosts_of("n[09-10,3]-x,m[1-2]") == spelled
    assert hosts_of("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]
    assert tasks_of("4") == [4]
    assert tasks_of("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's devices are made once")
def test_too_late_on_jax(monkeypatch):
    keras.ops.ones(()) + 1
    for name, value in write_job(Job(0, 1, 0, ADDRESSES), "jax").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="first line after the imports"):
        initialize()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TF_CONFIG")
def test_slurm_becomes_a_tf_config(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert initialize() is True
    assert (process_index(), process_count()) == (2, 3)


@pytest.mark.skipif(BACKEND != "torch", reason="the quickest to start")
def test_tasks_of_slurm_join(tmp_path):
    """SLURM's variables, as two tasks on this host would have them."""
    path = tmp_path / "script.py"
    path.write_text("""
import pathlib, sys
from keras_moe.distribution.environment import *
assert initialize() and initialize()
import torch
x = torch.tensor([process_index() + 1.0])
torch.distributed.all_reduce(x)
out = pathlib.Path(sys.argv[1], str(process_index()))
out.write_text(f"{process_count()} {x[0]}")
""")
    step = {
        **SLURM,
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_JOB_ID": str(os.getpid()),
    }
    ranks = [{"SLURM_PROCID": r, "SLURM_LOCALID": r} for r in "01"]
    environments = [{**os.environ, **step, **rank} for rank in ranks]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    command = ["-W", "error", str(path), str(tmp_path)]
    assert run_together(command, environments, logs) is None
    for rank, log in zip("01", logs, strict=True):
        assert (tmp_path / rank).read_text() == "2 3.0"
        assert "Warning" not in log.read_text()


@given(
    total=st.integers(0, 40),
    count=st.integers(1, 7),
    contiguous=st.booleans(),
    rest=st.sampled_from(["drop", "repeat"]),
    as_list=st.booleans(),
)
def test_shards_are_equal_and_whole(total, count, contiguous, rest, as_list):
    """Together they are the first S * floor(N / S) examples, each once; or
    all N, and again the first S * ceil(N / S) - N ones."""
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
    """Batch b of 4 is, of both of two processes, batch b of 2."""
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
    """Process 3 of 4: the last replica, of which 4 / replicas are one's."""

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


@pytest.mark.skipif(BACKEND != "torch", reason="grain knows no backend")
def test_grain_reads_a_shard(monkeypatch):
    grain = pytest.importorskip("grain")
    monkeypatch.setattr(shards, "process_index", lambda: 1)
    monkeypatch.setattr(shards, "process_count", lambda: 3)
    part = data_shard()
    dataset = grain.MapDataset.source(range(10))[part.index :: part.count]
    assert list(dataset) == [1, 4, 7]


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_jobs_are_whole(cluster):
    """What YAML and bash can read; the command last, with its quotes."""
    options = {"processes": 1, "nodes": 4, "restarts": 2}
    arguments = ("my dir/Train_it.py", "--note", "a 'b'")
    text = job_text(cluster, *arguments, backend="jax", **options)
    command = "'my dir/Train_it.py' --note 'a '\"'\"'b'\"'\"''"
    assert text.rstrip().endswith(command)
    if cluster in ("slurm", "ray"):
        checked = subprocess.run(["bash", "-n"], input=text, text=True)
        assert checked.returncode == 0
        return
    service, job = yaml.safe_load_all(text)
    name = service["metadata"]["name"]
    assert name == job["metadata"]["name"] == "train-it"
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == name
    assert pod["containers"][0]["args"][0].endswith(command)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4


def test_pods_find_each_other():
    text = job_text("kubernetes", "a.py", backend="torch", processes=3)
    assert "--hosts a-0.a,a-1.a" in text and "--processes 3" in text
    assert "restartPolicy: Never" in text


@pytest.mark.parametrize(
    "cluster, options, words",
    [
        ("pbs", {}, "`cluster`"),
        ("slurm", {"nodes": 0}, "`nodes`"),
        ("slurm", {"processes": 0}, "`processes`"),
        ("gke-tpu", {"backend": "torch"}, "`backend`"),
    ],
)
def test_wrong_jobs(cluster, options, words):
    with pytest.raises(ValueError, match=words):
        job_text(cluster, "a.py", **{"backend": "jax", **options})


def test_ray_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras-moe\[ray\]"'):
        launch_on_ray("a.py", backend="torch")


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="the quickest to start")
def test_two_workers_of_ray(tmp_path):
    """A cluster on this host; its own process, as Ray's warnings are many."""
    pytest.importorskip("ray")
    path = tmp_path / "script.py"
    path.write_text("""
import sys
from keras_moe.distribution.ray_workers import launch_on_ray

def work(folder):
    from keras_moe.distribution.environment import initialize, process_index
    assert initialize()
    import torch
    x = torch.tensor([process_index() + 1.0])
    torch.distributed.all_reduce(x)
    open(f"{folder}/{process_index()}", "w").write(str(float(x)))

launch_on_ray(work, sys.argv[1], backend="torch", storage=sys.argv[1])
""")
    done = subprocess.run(
        [sys.executable, path, tmp_path],
        env={
            **os.environ,
            "KERAS_BACKEND": "numpy",  # the workers' own is named above
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "3.0"
