"""Run a script of this folder in two PyTorch processes."""

import os
import socket
import subprocess
import sys

import numpy as np
from paths import SUPPORT


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run_two_processes(folder, *runs, script="distribution_torch.py"):
    """Return the results of each process: a dict of dicts of arrays."""
    script = SUPPORT / script
    job = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", script, folder, *runs],
            env={**job, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, lines in zip(processes, printed, strict=True):
        assert process.returncode == 0, lines
    return [split(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def split(archive):
    found = {}
    for name in archive:
        run, key = name.split(":", 1)
        found.setdefault(run, {})[key] = archive[name]
    return found
