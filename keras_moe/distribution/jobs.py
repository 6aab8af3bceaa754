"""What to hand to a cluster so that it runs a script on several hosts.

Texts to start from: names of partitions, images and accelerators are the
cluster's, and stand in them in capital letters.
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
# Started again after a failure, {restarts} times at most; the script goes on
# from what it saved.
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
  clusterIP: None  # names for the pods, by which they find each other
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
# One pod a host of the slice; GKE tells each its number and the others' names,
# by which JAX finds them. 4x4 of v5e is 4 hosts of 4 chips.
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
# From a host that reaches the cluster, in the folder of the script:
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
    script: str | os.PathLike,
    *arguments: str,
    backend: str | None = None,
    nodes: int = 2,
    processes: int = 1,
    restarts: int = 0,
) -> str:
    """Returns a job that runs a script on several hosts of a cluster.

    The script calls `keras_moe.distribution.initialize()` first.

    Args:
        cluster: `"slurm"` (a batch script), `"kubernetes"` (an Indexed Job
            and its Service), `"gke-tpu"` (the same on a slice of TPUs, JAX
            only) or `"ray"` (the command that submits).
        script: its path on the hosts.
        *arguments: of the script.
        backend: `"jax"`, `"tensorflow"` or `"torch"`; None takes
            KERAS_BACKEND.
        nodes: how many hosts.
        processes: on each host.
        restarts: how often the cluster starts all again after a failure.

    Raises:
        ValueError: where an argument breaks its rule.
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
            "process has all of a host's. Received: "
            f"backend={backend!r}, processes={processes}. Choose these, or "
            "another cluster."
        )
    name = _name_of(script)
    return CLUSTERS[cluster].format(
        name=name,
        backend=backend,
        nodes=nodes,
        processes=processes,
        total=nodes * processes,
        restarts=restarts,
        # Of all pods together: one that fails takes all with it.
        failures=restarts * nodes,
        policy="OnFailure" if restarts else "Never",
        requeue=REQUEUE.format(restarts=restarts) if restarts else "",
        hosts=",".join(f"{name}-{i}.{name}" for i in range(nodes)),
        port=PORT,
        command=shlex.join([str(script), *map(str, arguments)]),
    )


def _name_of(script):
    """A name that Kubernetes takes, after the script's."""
    stem = pathlib.Path(script).stem.lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40] or "train"
