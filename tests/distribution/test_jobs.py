"""Test the texts of jobs for clusters, and launching on Ray."""

import importlib.util
import os
import subprocess
import sys

import pytest
import yaml
from backend import BACKEND

from keras_moe.distribution.jobs import CLUSTERS, job_text
from keras_moe.distribution.ray_workers import launch_on_ray


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_jobs_are_valid(cluster):
    """YAML or bash can parse a job, which ends with the quoted command."""
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


def test_the_error_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras-moe\[ray\]"'):
        launch_on_ray("a.py", backend="torch")


def test_a_missing_script_is_an_error_before_ray_starts():
    ray = pytest.importorskip("ray")
    with pytest.raises(FileNotFoundError, match="`work`"):
        launch_on_ray("missing.py", backend="torch")
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch starts fastest")
def test_two_workers_of_ray(tmp_path):
    """The cluster runs on this host.

    The test starts it in another process, because Ray has many warnings.
    """
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
            "KERAS_BACKEND": "numpy",  # the script sets the workers' backend
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "3.0"
