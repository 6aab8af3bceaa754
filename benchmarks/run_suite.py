"""Run the suite of speed and memory on one backend, and write a JSON file.

    KERAS_BACKEND=jax python benchmarks/run_suite.py --quick --out results

This command writes `results/jax.json`, from which
`benchmarks/report/make_report.py results` makes tables and plots. Every part is
a script in a separate process, so that the results of the others are kept if
one crashes. On a busy machine, use `--pinned`, which runs everything on one
core and measures CPU time. Without it, wall time on all cores is measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.shared import machine, timing

HERE = Path(__file__).parent
PARTS = {
    "blocks": "speed/block_by_shape.py",
    "sweeps": "speed/sweeps.py",
    "memory": "memory/training_step.py",
    "routers": "speed/routers.py",
    "first_step": "speed/compile_time.py",
    "end_to_end": "speed/fit_and_predict.py",
}
QUICK_PARTS = ("blocks", "sweeps", "first_step")
BACKENDS = ("jax", "tensorflow", "torch")


def run_part(part, folder, arguments):
    """Run one script; return its records, or one record of its failure."""
    out = Path(folder) / f"{part}.json"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / PARTS[part]]
        + ["--out", out, *arguments],
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        check=False,
    )
    seconds = time.perf_counter() - start
    print(f"{part}: {seconds:.0f} s", file=sys.stderr)
    if done.returncode:
        status = f"fails: {PARTS[part]} returned {done.returncode}"
        return [{"part": part, "name": part, "status": status}]
    return json.loads(out.read_text())


def options_of():
    """Parse the command line, which also has the options of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--parts", help=f"among {','.join(PARTS)}")
    parser.add_argument("--only", help="shapes, such as S,M; runs only blocks")
    parser.add_argument("--dtype", default="float32,bfloat16")
    for flag in ("--quick", "--pinned", "--no-peers"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def main():
    """Run the parts, one after the other."""
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
        timing.pin()
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
