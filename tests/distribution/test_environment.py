"""Test how a process joins a job."""

import json
import os

import keras
import pytest
from backend import BACKEND

from keras_moe.distribution.environment import (
    initialize,
    process_count,
    process_index,
)
from keras_moe.distribution.local_processes import run_together
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_is_written_and_read(backend):
    """PyTorch and JAX need one address; only PyTorch needs the local index."""
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


def test_jax_finds_the_other_hosts_of_a_tpu_slice():
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
def test_an_incomplete_job_is_an_error(backend, variables, words):
    with pytest.raises(ValueError, match=words):
        read_job(variables, backend)


def test_slurms_variables():
    """The first port is 15000 + 30007 % 15000 = 15007."""
    addresses = ("node08:15007", "node08:15008", "node09:15007")
    assert read_slurm_job(SLURM) == Job(2, 3, 0, addresses)
    # A shell of salloc has one task, however many the job has.
    assert read_slurm_job({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    # A batch script is not a step.
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


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch starts fastest")
def test_tasks_of_slurm_join(tmp_path):
    """Two processes on this host have the variables of two SLURM tasks."""
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
