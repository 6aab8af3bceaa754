"""Parse the options that several benchmarks share, and write records."""

import argparse
import json
from pathlib import Path


def parser_of(description):
    """Return a parser with the options that every part of the suite has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the records, JSON")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--pinned",
        action="store_true",
        help="CPU time; `run_suite.py --pinned` also pins to one core",
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", help="shapes, such as S,M")
    parser.add_argument("--dtype", default="float32,bfloat16")
    return parser


def chosen(only, names):
    """Return the members of `names` that `--only` lists, or all of them.

    Raises:
        SystemExit: If a name is unknown.
    """
    if not only:
        return list(names)
    wanted = only.split(",")
    unknown = set(wanted) - {str(name) for name in names}
    if unknown:
        raise SystemExit(
            f"error: `--only` must be among {', '.join(map(str, names))}. "
            f"Received: {', '.join(sorted(unknown))}."
        )
    return [name for name in names if str(name) in wanted]


def write(records, path):
    """Write records to a JSON file, or print them if `path` is None."""
    text = json.dumps(records, indent=1)
    if path is None:
        print(text)
    else:
        path.write_text(text + "\n")
