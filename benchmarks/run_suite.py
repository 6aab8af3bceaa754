"""Runs the benchmarks of the running backend and writes one JSON file.

    KERAS_BACKEND=jax python benchmarks/run.py --quick --out results

writes `results/jax.json`; `benchmarks/report.py results` makes tables and
plots of it. Every part is a script and a process of its own, so that one that
dies costs no other its results. `--pinned` keeps everything on one core and
measures CPU time, for a busy machine; without it, wall time on all cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import measure

HERE = Path(__file__).parent
PARTS = (
    "blocks",
    "sweeps",
    "memory",
    "routers",
    "first_step",
    "end_to_end",
)
QUICK_PARTS = ("blocks", "sweeps", "first_step")
BACKENDS = ("jax", "tensorflow", "torch")


def run_part(part, folder, arguments):
    """Runs one script; returns its records, or one that says it failed."""
    out = Path(folder) / f"{part}.json"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / f"{part}.py"]
        + ["--out", out, *arguments],
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        check=False,
    )
    seconds = time.perf_counter() - start
    print(f"{part}: {seconds:.0f} s", file=sys.stderr)
    if done.returncode:
        status = f"fails: {part}.py returned {done.returncode}"
        return [{"part": part, "name": part, "status": status}]
    return json.loads(out.read_text())


def options_of():
    """The command line; what is not this script's own goes to the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}")
    parser.add_argument("--only", help="shapes, such as S,M; runs `blocks`")
    parser.add_argument("--dtype", default="float32,bfloat16")
    for flag in ("--quick", "--pinned", "--no-peers"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def main():
    """Runs the parts one after the other."""
    args = options_of()
    backend = os.environ.get("KERAS_BACKEND")
    if backend not in BACKENDS:
        raise SystemExit(
            f"error: KERAS_BACKEND must be one of {', '.join(BACKENDS)}. "
            f"Received: {backend}."
        )
    passed = ["--dtype", args.dtype]
    for flag in ("quick", "pinned", "no_peers"):
        if getattr(args, flag):
            passed.append(f"--{flag.replace('_', '-')}")
    parts = QUICK_PARTS if args.quick else PARTS
    if args.only:
        parts, passed = ("blocks",), [*passed, "--only", args.only]
    if args.parts:
        parts = args.parts.split(",")
    if args.pinned:
        measure.pin()
    found = {"backend": backend, "pinned": args.pinned, "quick": args.quick}
    found["machine"] = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        found["records"] = [
            record
            for part in parts
            for record in run_part(part, folder, passed)
        ]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{backend}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
