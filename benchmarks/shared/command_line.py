"""The command line that the parts of the suite share."""

import argparse
import json
from pathlib import Path


def parser_of(description):
    """Returns a parser with the options every part has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the records, JSON")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--pinned",
        action="store_true",
        help="CPU time of the process; `run.py --pinned` also keeps to a core",
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", help="shapes, such as S,M")
    parser.add_argument("--dtype", default="float32,bfloat16")
    return parser


def chosen(only, names):
    """Returns those of `names` that `--only` asks for; all without it.

    Raises:
        SystemExit: where a name is unknown.
    """
    if not only:
        return list(names)
    wanted = only.split(",")
    unknown = set(wanted) - {str(name) for name in names}
    if unknown:
        raise SystemExit(
            f"error: --only knows {', '.join(map(str, names))}. Received: "
            f"{', '.join(sorted(unknown))}."
        )
    return [name for name in names if str(name) in wanted]


def write(records, path):
    """Writes a part's records; prints them where there is no path."""
    text = json.dumps(records, indent=1)
    if path is None:
        print(text)
    else:
        path.write_text(text + "\n")
