"""Write and read the environment variables of a job of several processes.

Each backend has variables of its own. `launch` writes them, and `initialize`
reads them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

BACKENDS = ("jax", "tensorflow", "torch")
JAX = "KERAS_DISTRIBUTION_"
Variables: TypeAlias = Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """Hold a process's place among those that train together.

    Attributes:
        index: Index of this process, 0 ... `processes` - 1.
        processes: Number of processes on all hosts.
        local_index: Index of this process among those of its host.
        addresses: `"host:port"` of each process, by index. It has only the
            first one if the variables have no others, and is empty if the
            backend finds the addresses by itself.
    """

    index: int
    processes: int
    local_index: int = 0
    addresses: tuple[str, ...] = ()


def write_job(job: Job, backend: str) -> dict[str, str]:
    """Return the variables from which a backend reads its job."""
    host, port = job.addresses[0].rsplit(":", 1)
    if backend == "jax":
        return {
            f"{JAX}JOB_ADDRESSES": job.addresses[0],
            f"{JAX}NUM_PROCESSES": str(job.processes),
            f"{JAX}PROCESS_ID": str(job.index),
        }
    if backend == "torch":
        return {
            "RANK": str(job.index),
            "WORLD_SIZE": str(job.processes),
            "LOCAL_RANK": str(job.local_index),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }
    task = {"type": "worker", "index": job.index}
    cluster = {"worker": list(job.addresses)}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def read_job(variables: Variables, backend: str) -> Job | None:
    """Return the job in a backend's variables, or `None` without a job.

    Raises:
        ValueError: If the variables of a job are incomplete or invalid.
    """
    readers = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    return readers[backend](variables) if backend in readers else None


def _jax(variables: Variables) -> Job | None:
    """Read the variables of `keras.distribution.initialize`, or of GKE."""
    if f"{JAX}NUM_PROCESSES" in variables:
        return Job(
            index=_integer(variables, f"{JAX}PROCESS_ID"),
            processes=_integer(variables, f"{JAX}NUM_PROCESSES"),
            addresses=(_needed(variables, f"{JAX}JOB_ADDRESSES"),),
        )
    return _tpus(variables)


def _tpus(variables: Variables) -> Job | None:
    """Read GKE's variables: one process per host, on one or more slices."""
    hosts = len(variables.get("TPU_WORKER_HOSTNAMES", "").split(","))
    slices = int(variables.get("MEGASCALE_NUM_SLICES") or 1)
    if hosts * slices < 2:
        return None
    before = int(variables.get("MEGASCALE_SLICE_ID") or 0) * hosts
    return Job(before + _integer(variables, "TPU_WORKER_ID"), hosts * slices)


def _torch(variables: Variables) -> Job | None:
    """Read the variables of torchrun."""
    if not {"RANK", "WORLD_SIZE"} <= variables.keys():
        return None
    host = _needed(variables, "MASTER_ADDR")
    port = _integer(variables, "MASTER_PORT")
    return Job(
        index=_integer(variables, "RANK"),
        processes=_integer(variables, "WORLD_SIZE"),
        local_index=int(variables.get("LOCAL_RANK", 0)),
        addresses=(f"{host}:{port}",),
    )


def _tensorflow(variables: Variables) -> Job | None:
    """Read `TF_CONFIG`, like `tf.distribute.MultiWorkerMirroredStrategy`."""
    if "TF_CONFIG" not in variables:
        return None
    text = variables["TF_CONFIG"]
    try:
        config = json.loads(text)
        task = config["task"]
        chiefs = config["cluster"].get("chief", [])
        addresses = (*chiefs, *config["cluster"]["worker"])
        index = int(task["index"])
        index += len(chiefs) if task["type"] == "worker" else 0
        if not 0 <= index < len(addresses):
            raise ValueError("no address for this task")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "`TF_CONFIG` must be JSON with the addresses of the workers and "
            f"this process's task ({type(error).__name__}: {error}). "
            f"Received: TF_CONFIG={text!r}. Let `keras-moe launch` write it, "
            "or write {'cluster': {'worker': ['host:port', ...]}, 'task': "
            "{'type': 'worker', 'index': 0}}."
        ) from error
    return Job(index, len(addresses), 0, addresses)


def _needed(variables: Variables, name: str) -> str:
    if name in variables:
        return variables[name]
    raise ValueError(
        f"`{name}` must be set in the environment, like the other variables of "
        "the job. Received: nothing. Start the script by `keras-moe launch`, "
        "or unset the other variables to run alone."
    )


def _integer(variables: Variables, name: str) -> int:
    text = _needed(variables, name)
    if text.isdigit():
        return int(text)
    raise ValueError(
        f"`{name}` must be an integer, 0 or above. Received: {name}={text!r} "
        "in the environment. Start the script by `keras-moe launch`, or unset "
        "the variables of the job to run alone."
    )
