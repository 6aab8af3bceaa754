"""A job of several processes, as the variables of the environment tell it.

Each backend has names of its own; `launch` writes them, `initialize` reads
them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

BACKENDS = ("jax", "tensorflow", "torch")
JAX = "KERAS_DISTRIBUTION_"
Variables = Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """A process's place among those that train together.

    Attributes:
        index: of this process, 0 ... `processes` - 1.
        processes: how many there are, on all hosts.
        local_index: of this process among those of its host.
        addresses: `"host:port"` of each process, by index; where the
            variables name the first one only, that one; `()` where the
            backend finds it by itself.
    """

    index: int
    processes: int
    local_index: int = 0
    addresses: tuple[str, ...] = ()


def write_job(job: Job, backend: str) -> dict[str, str]:
    """Returns the variables in which a backend reads its job."""
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
    """Returns the job that a backend's variables tell, or None."""
    readers = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    return readers[backend](variables) if backend in readers else None


def _jax(variables):
    """What `keras.distribution.initialize` reads, or GKE on TPUs."""
    if f"{JAX}NUM_PROCESSES" in variables:
        return Job(
            index=_integer(variables, f"{JAX}PROCESS_ID"),
            processes=_integer(variables, f"{JAX}NUM_PROCESSES"),
            addresses=(_needed(variables, f"{JAX}JOB_ADDRESSES"),),
        )
    return _tpus(variables)


def _tpus(variables):
    """What GKE writes: a process a host, on a slice or several."""
    hosts = len(variables.get("TPU_WORKER_HOSTNAMES", "").split(","))
    slices = int(variables.get("MEGASCALE_NUM_SLICES") or 1)
    if hosts * slices < 2:
        return None
    before = int(variables.get("MEGASCALE_SLICE_ID") or 0) * hosts
    return Job(before + _integer(variables, "TPU_WORKER_ID"), hosts * slices)


def _torch(variables):
    """What torchrun writes."""
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


def _tensorflow(variables):
    """What `tf.distribute.MultiWorkerMirroredStrategy` reads."""
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


def _needed(variables, name):
    if name in variables:
        return variables[name]
    raise ValueError(
        f"`{name}` must be set in the environment beside the others of its "
        "job. Received: nothing. Start the script by `keras-moe launch`, or "
        "unset the others to run alone."
    )


def _integer(variables, name):
    text = _needed(variables, name)
    if text.isdigit():
        return int(text)
    raise ValueError(
        f"`{name}` must be an integer, 0 or above. Received: {name}={text!r} "
        "in the environment. Start the script by `keras-moe launch`, or unset "
        "the variables of the job to run alone."
    )
