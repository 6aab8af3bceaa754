"""Run the quickstart for three seeds on each backend, and make its table.

    python benchmarks/quality/quickstart_table.py [--write README.md]

`--write FILE` puts the table between `<!-- quickstart-table -->` and
`<!-- /quickstart-table -->` in FILE.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import marked_text

BACKENDS = ("jax", "tensorflow", "torch")
SEEDS = (0, 1, 2)
QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"
HEAD = (
    "| trained on | MoE accuracy, mean (min) | dense twin, mean (min) | other "
    "backends | SavedModel | LiteRT |\n|---|---|---|---|---|---|"
)


def run(backend, seed, folder):
    """Run the quickstart once; return its results."""
    subprocess.run(
        [sys.executable, QUICKSTART, "--backend", backend, "--seed", str(seed)]
        + ["--output", folder],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((Path(folder) / "results.json").read_text())


def row(backend, results):
    """Return a backend's row: means, minima, and largest differences."""

    def accuracy(kind):
        values = [r["accuracy"][kind] for r in results]
        return f"{mean(values):.4f} ({min(values):.4f})"

    def largest(*names):
        return max(
            r["differences"][n]["largest"] for r in results for n in names
        )

    others = [other for other in BACKENDS if other != backend]
    return (
        f"| {backend} | {accuracy('moe')} | {accuracy('dense')} | "
        f"{largest(*others):.1e} | {largest('SavedModel'):.1e} | "
        f"{largest('LiteRT'):.1e} |"
    )


def main():
    """Print the table; with `--write`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows = []
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(backend, [run(backend, s, folder) for s in SEEDS]))
        print(rows[-1], flush=True)
    table = "\n".join([HEAD, *rows])
    if options.write:
        marked_text.replace(options.write, "quickstart-table", table)


if __name__ == "__main__":
    main()
