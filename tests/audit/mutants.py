"""Plant small faults in the package and test whether the suite detects them.

A mutant has one line of the pure parts of the package with a comparison, a
sign, an axis, or a number changed. Each mutant belongs to one backend. It runs
only the tests that cover the line there, the fastest first, until one fails.
The covering tests come from `coverage` data that was recorded with
`pytest --cov-context=test`, and the order from the records of `timings.py`::

    python tests/audit/mutants.py choose mutants.json \\
        --coverage jax=DATA --coverage tensorflow=DATA --coverage torch=DATA
    python tests/audit/mutants.py run mutants.json results.json \\
        --coverage jax=DATA ... --timings jax.jsonl ...

`choose` draws the mutants with a fixed seed, and `run` prints the fate of each.
To compare two suites, run twice with the data of each.
"""

import argparse
import ast
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

from covered import Covered

ROOT = pathlib.Path(__file__).parents[2]
PLACES = (
    "keras_moe/routing",
    "keras_moe/losses",
    "keras_moe/dispatch.py",
    "keras_moe/kernels",
    "keras_moe/layers/routers",
)
BACKENDS = ("jax", "tensorflow", "torch")
SEED, COUNT, LONGEST = 0, 40, 1200
COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
SIGNS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+")}
AXES = {"-1": "0", "0": "-1", "1": "0", "-2": "-1"}


# --- choosing ---------------------------------------------------------------


def between(lines, left, right, old, new):
    """Return the edit of the operator between two nodes."""
    if left.end_lineno != right.lineno:
        return None
    text = lines[right.lineno - 1]
    middle = text[left.end_col_offset : right.col_offset]
    if middle.count(old) != 1:
        return None
    column = left.end_col_offset + middle.index(old)
    return right.lineno, column, old, new


def integer(node):
    """Return whether a node is an integer literal, perhaps with a minus."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int


def edits_of(node, lines):
    """Yield the edits of one node: (kind, (line, column, old, new))."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        if pair := COMPARISONS.get(type(node.ops[0])):
            right = node.comparators[0]
            yield "comparison", between(lines, node.left, right, *pair)
    elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        pair = SIGNS[type(node.op)]
        yield "sign", between(lines, node.left, node.right, *pair)
    elif isinstance(node, ast.keyword) and node.arg == "axis":
        old = ast.unparse(node.value)
        if old in AXES:
            at = node.value.lineno, node.value.col_offset
            yield "axis", (*at, old, AXES[old])
    for child in ast.iter_child_nodes(node):
        counted = isinstance(node, ast.BinOp | ast.Compare | ast.Slice)
        if counted and integer(child):
            old = ast.unparse(child)
            new = str(int(old) + 1)
            at = child.lineno, child.col_offset
            yield "off by one", (*at, old, new)


def sites():
    """Return every possible mutant of the places, in a fixed order."""
    found = []
    for place in PLACES:
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            text = file.read_text()
            lines = text.splitlines()
            for node in ast.walk(ast.parse(text)):
                for kind, edit in edits_of(node, lines):
                    if edit:
                        name = str(file.relative_to(ROOT))
                        found.append((name, kind, *edit))
    return sorted(set(found))


def choose(covered):
    """Draw mutants of covered lines, for each backend in turn."""
    pool = sites()
    random.Random(SEED).shuffle(pool)
    chosen, files = [], collections.Counter()
    while len(chosen) < COUNT:
        backend = BACKENDS[len(chosen) % len(BACKENDS)]
        for site in pool:
            file, kind, line, column, old, new = site
            if files[file] < 2 and covered[backend].tests(file, line):
                break
        else:
            raise SystemExit("Too few lines are covered.")
        pool.remove(site)
        files[file] += 1
        chosen.append(
            {
                "backend": backend,
                "file": file,
                "kind": kind,
                "line": line,
                "column": column,
                "old": old,
                "new": new,
            }
        )
    return chosen


# --- running ----------------------------------------------------------------


def apply(mutant, tree):
    """Change a mutant's line in a copy of the repository."""
    path = tree / mutant["file"]
    lines = path.read_text().splitlines(keepends=True)
    line, at = lines[mutant["line"] - 1], mutant["column"]
    old = mutant["old"]
    if line[at : at + len(old)] != old:
        raise ValueError(f"{mutant['file']} has changed since the choice.")
    lines[mutant["line"] - 1] = (
        line[:at] + mutant["new"] + line[at + len(old) :]
    )
    path.write_text("".join(lines))


def run(mutant, tests, seconds, tree_of_tests):
    """Run the covering tests on a mutant and return its fate."""
    names = sorted(tests, key=lambda name: seconds.get(name, 1.0))
    fate = {**mutant, "tests": len(names)}
    if not names:
        return {**fate, "fate": "no test covers it"}
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = pathlib.Path(folder) / "tree"
        skipped = shutil.ignore_patterns(".venv", ".git", ".*_cache")
        shutil.copytree(tree_of_tests, tree, ignore=skipped)
        apply(mutant, tree)
        listed = pathlib.Path(folder) / "tests.txt"
        listed.write_text("\n".join(names))
        command = [sys.executable, "-m", "pytest", "-x", f"@{listed}"]
        environment = {
            **os.environ,
            "KERAS_BACKEND": mutant["backend"],
            "PYTHONPATH": str(tree),
        }
        try:
            done = subprocess.run(
                [*command, "--tb=line"],
                cwd=tree,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            return {**fate, "fate": "timeout"}
    killers = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return {**fate, "fate": "survived"}
    if not killers or "s is the limit" in done.stdout:
        tail = (done.stdout + done.stderr)[-500:]
        return {**fate, "fate": "error", "output": tail}
    return {**fate, "fate": "killed", "by": killers[0]}


def main():
    """Parse the command line and choose or run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["choose", "run"])
    parser.add_argument("mutants", type=pathlib.Path)
    parser.add_argument("results", type=pathlib.Path, nargs="?")
    parser.add_argument("--coverage", action="append", required=True)
    parser.add_argument("--timings", nargs="*", default=[])
    parser.add_argument("--tree", type=pathlib.Path, default=ROOT)
    parser.add_argument("--only", type=int, nargs="*")
    options = parser.parse_args()
    data = dict(pair.split("=") for pair in options.coverage)
    covered = {backend: Covered(path) for backend, path in data.items()}
    if options.what == "choose":
        chosen = choose(covered)
        options.mutants.write_text(json.dumps(chosen, indent=1))
        return
    mutants = json.loads(options.mutants.read_text())
    seconds = {}
    for path in options.timings:
        for line in pathlib.Path(path).read_text().splitlines():
            record = json.loads(line)
            seconds[record["backend"], record["test"]] = record["seconds"]
    jobs = []
    for number, mutant in enumerate(mutants):
        if options.only is not None and number not in options.only:
            continue
        backend = mutant["backend"]
        tests = covered[backend].tests(mutant["file"], mutant["line"])
        own = {t: s for (b, t), s in seconds.items() if b == backend}
        jobs.append((number, mutant, tests, own))
    results = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            pool.submit(run, mutant, tests, own, options.tree): number
            for number, mutant, tests, own in jobs
        }
        for done in concurrent.futures.as_completed(runs):
            fate = {"number": runs[done], **done.result()}
            results.append(fate)
            print(json.dumps(fate), flush=True)
    results.sort(key=lambda fate: fate["number"])
    options.results.write_text(json.dumps(results, indent=1))
    print(collections.Counter(fate["fate"] for fate in results))


if __name__ == "__main__":
    main()
