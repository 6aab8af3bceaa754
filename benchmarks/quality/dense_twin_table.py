"""Makes the README's table of the MoEs that were trained beside dense twins.

    python benchmarks/twins_table.py [--write README.md]

It reads the `results.json` that `examples/language_model.py`, `tagger.py` and
`translation.py` left in `saved_models/`. `--write FILE` puts the table between
`<!-- twins-table -->` and `<!-- /twins-table -->` in FILE.
"""

import argparse
import json
import sys
from pathlib import Path

import markers

ROOT = Path(__file__).parents[1]
EXAMPLES = ("language_model", "tagger", "translation")


def load(folder):
    """Returns the results of the examples that were run.

    Raises:
        SystemExit: where none was, or one was run with --quick.
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
    """Prints the table; writes it where asked."""
    sys.path.insert(0, str(ROOT / "examples"))
    import twins_report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "saved_models")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    table = twins_report.markdown(load(options.folder))
    print(table)
    if options.write:
        markers.replace(options.write, "twins-table", table)


if __name__ == "__main__":
    main()
