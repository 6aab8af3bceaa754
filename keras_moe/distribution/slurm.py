"""Read a job of several processes from SLURM's variables.

`srun` starts one process per task, and sets the index of each process and the
hosts of the step.
"""

import re
from collections.abc import Iterator

from keras_moe.distribution.variables import Job, Variables

FIRST_PORT = 15000  # below the ports that systems choose
PORTS = 15000


def read_slurm_job(variables: Variables) -> Job | None:
    """Return the job of an `srun` step of more than one task, or `None`.

    The tasks must be distributed over the hosts in blocks, which is the default
    (`--distribution=block`). The port is computed from the id of the job.
    """
    names = {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"}
    # The number of the step's tasks: an interactive shell is a step of one task
    # in a job of many.
    tasks = variables.get("SLURM_STEP_NUM_TASKS")
    tasks = tasks or variables.get("SLURM_NTASKS", "1")
    if not names <= variables.keys() or int(tasks) < 2:
        return None
    port = FIRST_PORT + int(variables["SLURM_JOB_ID"]) % PORTS
    hosts = hosts_of(variables["SLURM_STEP_NODELIST"])
    counts = tasks_of(
        variables.get("SLURM_STEP_TASKS_PER_NODE")
        or variables["SLURM_TASKS_PER_NODE"]
    )
    return Job(
        index=int(variables["SLURM_PROCID"]),
        processes=int(tasks),
        local_index=int(variables.get("SLURM_LOCALID", 0)),
        addresses=tuple(
            f"{host}:{port + local}"
            for host, count in zip(hosts, counts, strict=True)
            for local in range(count)
        ),
    )


def hosts_of(text: str) -> list[str]:
    """Expand a list of hosts: `"a[01-03,7]-x,b"` has five."""
    hosts = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            ends = [plain] if plain else list(_numbers(ranges))
            names = [name + end for name in names for end in ends]
        hosts += names
    return hosts


def tasks_of(text: str) -> list[int]:
    """Expand the numbers of tasks per host: `"2(x3),1"` is 2, 2, 2, 1."""
    counts = []
    for item in text.split(","):
        count, _, times = item.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts


def _numbers(ranges: str) -> Iterator[str]:
    """Expand ranges of numbers: `"08-10,3"` is 08, 09, 10, 3."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))
