"""Make the table of the MoEs and dense twins that the examples trained.

    python benchmarks/quality/dense_twin_table.py [--write README.md]

The script reads the `results.json` that `examples/language_model.py`,
`tagger.py`, and `translation.py` wrote to `saved_models/`. `--write FILE` puts
the table between `<!-- twins-table -->` and `<!-- /twins-table -->` in FILE.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import marked_text

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("language_model", "tagger", "translation")


def load(folder):
    """Return the results of the examples that were run.

    Raises:
        SystemExit: If none was run, or one was run with `--quick`.
    """
    paths = (folder / name / "results.json" for name in EXAMPLES)
    runs = [json.loads(p.read_text()) for p in paths if p.exists()]
    if not runs:
        raise SystemExit(f"error: no results in {folder}. Run an example.")
    for run in runs:
        if run["quick"]:
            raise SystemExit(
                f"error: {run['name']} was run with --quick. Run it without."
            )
    return runs


def main(arguments=None):
    """Print the table; with `--write`, write it to a file."""
    sys.path.insert(0, str(ROOT / "examples"))
    from shared import twins_table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "saved_models")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    table = twins_table.markdown(load(options.folder))
    print(table)
    if options.write:
        marked_text.replace(options.write, "twins-table", table)


if __name__ == "__main__":
    main()
