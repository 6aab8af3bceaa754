"""Write the job files with which a cluster runs a script on several hosts.

The texts are templates. Replace the names in capital letters by the partitions,
images, and accelerators of your cluster.
"""

import os
import pathlib
import re
import shlex

from keras_moe import checks
from keras_moe.distribution.starting import check_backend

PORT = 29500

SLURM = """\
#!/bin/bash
# Submit: sbatch job.sh
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={processes}
#SBATCH --cpus-per-task=8
##SBATCH --partition=PARTITION
##SBATCH --gpus-per-node={processes}
{requeue}\
export KERAS_BACKEND={backend} OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
srun --cpus-per-task=$SLURM_CPUS_PER_TASK --kill-on-bad-exit=1 \\
    python {command}
"""

REQUEUE = """\
#SBATCH --requeue
#SBATCH --open-mode=append
# The job is started again after a failure, at most {restarts} times. The
# script resumes from what it saved.
again() {{
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
}}
trap again ERR
"""

KUBERNETES = """\
# Apply: kubectl apply -f job.yaml
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None  # gives the pods names, by which they find each other
  publishNotReadyAddresses: true
  selector:
    job-name: {name}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {nodes}
  parallelism: {nodes}
  backoffLimit: {failures}
  template:
    spec:
      subdomain: {name}
      restartPolicy: {policy}
      containers:
      - name: train
        image: IMAGE
        # resources: {{limits: {{nvidia.com/gpu: {processes}}}}}
        command: [bash, -c]
        args:
        - >-
          exec keras-moe launch --backend {backend}
          --processes {processes} --port {port}
          --hosts {hosts}
          --host $JOB_COMPLETION_INDEX
          {command}
"""

GKE_TPU = """\
# Apply: kubectl apply -f job.yaml
# One pod per host of the slice. GKE sets the index of each pod and the names of
# all pods, by which JAX finds them. 4x4 of v5e is 4 hosts with 4 chips each.
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None
  selector:
    job-name: {name}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {nodes}
  parallelism: {nodes}
  backoffLimit: {failures}
  template:
    spec:
      subdomain: {name}
      restartPolicy: {policy}
      nodeSelector:
        cloud.google.com/gke-tpu-accelerator: ACCELERATOR
        cloud.google.com/gke-tpu-topology: TOPOLOGY
      containers:
      - name: train
        image: IMAGE
        env:
        - name: KERAS_BACKEND
          value: jax
        ports:
        - containerPort: 8471
        - containerPort: 8431
        resources:
          limits:
            google.com/tpu: 4
        command: [bash, -c]
        args:
        - >-
          exec python {command}
"""

RAY = """\
# Run on a host that can reach the cluster, in the folder of the script:
ray job submit --address http://HEAD:8265 --working-dir . -- \\
    keras-moe launch --on ray --backend {backend} --processes {total} \\
    --restarts {restarts} {command}
"""

CLUSTERS = {
    "slurm": SLURM,
    "kubernetes": KUBERNETES,
    "gke-tpu": GKE_TPU,
    "ray": RAY,
}


def job_text(
    cluster: str,
    script: str | os.PathLike[str],
    *arguments: str,
    backend: str | None = None,
    nodes: int = 2,
    processes: int = 1,
    restarts: int = 0,
) -> str:
    """Return the text of a job that runs a script on several hosts.

    The script must call `keras_moe.distribution.initialize()` first.

    Args:
        cluster: `"slurm"` (a batch script), `"kubernetes"` (an Indexed Job
            and its Service), `"gke-tpu"` (the same on a slice of TPUs, only
            for JAX), or `"ray"` (a command that submits the job).
        script: Path of the script on the hosts.
        *arguments: Arguments of the script.
        backend: `"jax"`, `"tensorflow"`, or `"torch"`. `None` (the default)
            uses `KERAS_BACKEND`.
        nodes: Int, number of hosts. Default: 2.
        processes: Int, number of processes per host. Default: 1.
        restarts: Int, how often the cluster starts all processes again after a
            failure. Default: 0.

    Returns:
        The text of the job. Its first lines explain how to submit it.

    Raises:
        ValueError: If an argument is not one of the values above, or if
            `cluster` is `"gke-tpu"` with a backend other than JAX or with
            several processes per host.

    Example:

    ```python
    text = keras_moe.distribution.job_text(
        "slurm", "train.py", "--epochs", "3", backend="jax", nodes=2
    )
    print(text)
    ```
    """
    checks.check_choice("cluster", cluster, tuple(CLUSTERS))
    checks.check_path("script", script)
    backend = check_backend(backend)
    checks.check_positive_int("nodes", nodes)
    checks.check_positive_int("processes", processes)
    checks.check_count("restarts", restarts)
    if cluster == "gke-tpu" and (backend, processes) != ("jax", 1):
        raise ValueError(
            "`backend` must be 'jax' and `processes` 1 on a slice of TPUs: one "
            "process uses all TPUs of a host. Received: "
            f"backend={backend!r}, processes={processes}. Pass these values, "
            "or choose another cluster."
        )
    name = _name_of(script)
    return CLUSTERS[cluster].format(
        name=name,
        backend=backend,
        nodes=nodes,
        processes=processes,
        total=nodes * processes,
        restarts=restarts,
        # Counted over all pods: if one fails, all fail.
        failures=restarts * nodes,
        policy="OnFailure" if restarts else "Never",
        requeue=REQUEUE.format(restarts=restarts) if restarts else "",
        hosts=",".join(f"{name}-{i}.{name}" for i in range(nodes)),
        port=PORT,
        command=shlex.join([str(script), *map(str, arguments)]),
    )


def _name_of(script: str | os.PathLike[str]) -> str:
    """Return a name for the script's job that Kubernetes accepts."""
    stem = pathlib.Path(script).stem.lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40] or "train"
