"""Make tables and plots of the results of `run_suite.py`.

    python benchmarks/report/make_report.py results [--write README.md]

The script reads `results/*.json`, prints Markdown, and writes
`results/report.md` and PNG plots. `--write FILE` puts the main tables between
`<!-- benchmark-table -->` and `<!-- /benchmark-table -->` in FILE. A figure is
a ratio of times, the median of the rounds with its quartiles; 1 is the limit.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.report import aims, plots, tables
from benchmarks.shared import marked_text

ORDER = ("jax", "tensorflow", "torch")


def load(folder):
    """Return the results of the backends that ran.

    Raises:
        SystemExit: If there are no results.
    """
    paths = [folder / f"{backend}.json" for backend in ORDER]
    results = [json.loads(p.read_text()) for p in paths if p.exists()]
    if not results:
        raise SystemExit(
            f"error: no results in {folder}. Run benchmarks/run_suite.py --out "
            f"{folder} first."
        )
    return results


def main_part(results):
    """Return the tables for the README."""
    parts = [tables.main_table(results), aims.aims_table(results)]
    return "\n\n".join([*parts, tables.environment(results)])


def everything(results):
    """Return the main part, then the tables of all contestants per backend."""
    parts = ["# Benchmarks", main_part(results)]
    parts += ["## Routers", tables.routers_table(results)]
    for result in results:
        records = tables.find(result, part="blocks")
        for dtype in dict.fromkeys(r.get("dtype") for r in records):
            if dtype:
                parts.append(f"## {result['backend']}, {dtype}")
                parts.append(tables.all_table(result, dtype))
        failed = [r for r in result["records"] if r["name"] == r["part"]]
        parts += [f"{r['part']} {r['status']}" for r in failed]
    return "\n\n".join(parts)


def main():
    """Print the report; write it and the plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    results = load(args.folder)
    text = everything(results)
    print(text)
    (args.folder / "report.md").write_text(text + "\n")
    for path in plots.draw_all(results, args.folder):
        print(path)
    if args.write:
        marked_text.replace(args.write, "benchmark-table", main_part(results))


if __name__ == "__main__":
    main()
