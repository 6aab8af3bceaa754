"""A job of several processes, as SLURM's variables tell it.

`srun` starts one process a task and tells each of them its number and the
step's hosts.
"""

import re

from keras_moe.distribution.variables import Job, Variables

FIRST_PORT = 15000  # below those that systems hand out by themselves
PORTS = 15000


def read_slurm_job(variables: Variables) -> Job | None:
    """Returns the job of an `srun` step of more than one task, or None.

    The tasks must lie on the hosts in blocks, as they do by default
    (`--distribution=block`). The port follows from the number of the job.
    """
    names = {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"}
    # The step's own number: an interactive shell is a step of one task within
    # a job of many.
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
    """Spells out a list of hosts: `"a[01-03,7]-x,b"` names five."""
    hosts = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            ends = [plain] if plain else list(_numbers(ranges))
            names = [name + end for name in names for end in ends]
        hosts += names
    return hosts


def tasks_of(text: str) -> list[int]:
    """Spells out the tasks of each host: `"2(x3),1"` is 2, 2, 2, 1."""
    counts = []
    for item in text.split(","):
        count, _, times = item.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts


def _numbers(ranges):
    """`"08-10,3"` is 08, 09, 10, 3."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))
