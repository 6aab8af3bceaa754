"""TensorFlow's strategies give what one device gives, in real processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import distributed_model
import keras
import numpy as np
import pytest
from backend import BACKEND

import keras_moe

if BACKEND != "tensorflow":
    pytest.skip("tf.distribute is TensorFlow's", allow_module_level=True)

import distributed_tensorflow
import tensorflow as tf

from keras_moe.distribution import tensorflow_workers
from keras_moe.distribution.tensorflow_workers import data_parallel

HERE = pathlib.Path(__file__).parent
TOLERANCE = 1e-5


def start(kind, folder, **environment):
    """A process of `distributed_tensorflow.py`."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "distributed_tensorflow.py", kind, str(folder)],
        cwd=HERE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_workers(folder):
    """Two processes on ports that are free now."""
    with socket.create_server(("localhost", 0)) as a:
        with socket.create_server(("localhost", 0)) as b:
            ports = [s.getsockname()[1] for s in (a, b)]
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return [
        start(
            "worker",
            folder,
            TF_CONFIG=json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": i}}
            ),
        )
        for i in range(2)
    ]


def finish(processes):
    """Waits for all; raises with the last lines of one that failed."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def alone():
    """What one device gives, in this process."""
    x, y = distributed_model.make_data()
    model = distributed_model.make_model()
    found = distributed_tensorflow.use(model, x, y, batch_size=16)
    own_step = distributed_tensorflow.train_own_step()
    return found | {f"own_step/{k}": v for k, v in own_step.items()}


def check(path, alone):
    found = dict(np.load(path))
    assert len(found["losses"]) == distributed_model.STEPS
    assert np.any(found["moe/router/expert_bias"])
    worst = distributed_model.furthest(found, alone)
    assert worst[0] <= TOLERANCE, worst


def check_saved(path, alone):
    """A file saved under a strategy gives the same on one device."""
    x, _ = distributed_model.make_data()
    model = keras.models.load_model(path)
    outputs = model.predict(x, 16, verbose=0)
    assert np.max(np.abs(outputs - alone["predicted"])) <= TOLERANCE


@pytest.mark.parametrize("kind", ["mirrored", "worker"])
def test_replicas_are_one_device(kind, tmp_path, alone):
    many = kind == "worker"
    finish(start_workers(tmp_path) if many else [start(kind, tmp_path)])
    for index in range(2 if many else 1):
        check(tmp_path / f"{kind}-{index}.npz", alone)
    check_saved(tmp_path / f"{kind}.keras", alone)
