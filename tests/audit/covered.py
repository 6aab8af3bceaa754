"""Compare which lines of the package two suites run, by folder and backend.

The script reads data of `coverage`, for example from this command::

    COVERAGE_FILE=after/.coverage KERAS_BACKEND=jax python -m pytest \\
        --cov keras_moe --cov-context test -m "not slow and not repeated"

This command prints the percentage of each folder's statements that ran, before
and after, on each backend and on any of them::

    python tests/audit/covered.py jax=BEFORE,AFTER torch=BEFORE,AFTER
"""

import collections
import pathlib
import re
import sys

import coverage

ROOT = pathlib.Path(__file__).parents[2]
WHEN = ("before", "after")


class Covered:
    """Read which tests ran each line, on one backend."""

    def __init__(self, path):
        self.data = coverage.CoverageData(basename=path)
        self.data.read()
        # A process in another folder has another path of the same file.
        self.names = collections.defaultdict(list)
        for name in self.data.measured_files():
            self.names[re.sub(r"^.*(?=keras_moe(/|_cli))", "", name)].append(
                name
            )
        self.contexts = {}

    def lines(self, file):
        """Return the numbers of a file's lines that ran."""
        return {n for name in self.names[file] for n in self.data.lines(name)}

    def tests(self, file, line):
        """Return the names of the tests that ran a line."""
        found = set()
        for name in self.names[file]:
            if name not in self.contexts:
                self.contexts[name] = self.data.contexts_by_lineno(name)
            found.update(self.contexts[name].get(line, []))
        return {context.rpartition("|")[0] for context in found} - {""}


def statements():
    """Return the statements of each file of the package: line numbers."""
    reader = coverage.Coverage(data_file=None)
    files = sorted(
        path
        for package in ("keras_moe", "keras_moe_cli")
        for path in (ROOT / package).rglob("*.py")
    )
    return {
        str(path.relative_to(ROOT)): set(reader.analysis2(str(path))[1])
        for path in files
    }


def folder_of(file):
    """Return the folder of the package that a file is in."""
    parts = pathlib.Path(file).parts
    return parts[1] if len(parts) > 2 else parts[0]


def percentages(runs, known):
    """Return the percentage of statements that any run reached, by folder."""
    ran, all_of = collections.Counter(), collections.Counter()
    for file, lines in known.items():
        reached = set().union(*(run.lines(file) for run in runs))
        for folder in (folder_of(file), "all"):
            ran[folder] += len(lines & reached)
            all_of[folder] += len(lines)
    return {folder: 100 * ran[folder] / n for folder, n in all_of.items() if n}


def main(pairs):
    """Print the table of percentages."""
    known = statements()
    found, runs = {}, {when: [] for when in WHEN}
    for pair in pairs:
        backend, paths = pair.split("=")
        for when, path in zip(WHEN, paths.split(","), strict=False):
            runs[when].append(Covered(path))
            found[f"{backend} {when}"] = percentages(runs[when][-1:], known)
    for when, of_all in runs.items():
        found[f"any {when}"] = percentages(of_all, known)
    print(f"| folder | {' | '.join(found)} |")
    print(f"|{'---|' * (len(found) + 1)}")
    folders = next(iter(found.values()))
    for folder in sorted(folders, key=lambda f: (f == "all", f)):
        cells = [f"{values[folder]:.1f}" for values in found.values()]
        print(f"| {folder} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
