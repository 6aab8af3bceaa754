"""Describe the machine and the versions, for every result file."""

import datetime
import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "keras",
    "keras-hub",
    "tensorflow",
    "jax",
    "torch",
    "transformers",
    "st-moe-pytorch",
    "mixture-of-experts",
    "numpy",
)


def describe():
    """Return processor, memory, versions, commit, and date as a dict."""
    return {
        "cpu": _find("/proc/cpuinfo", r"model name\s+: (.*)"),
        "cores": os.cpu_count(),
        "memory_gb": round(
            int(_find("/proc/meminfo", r"MemTotal:\s+(\d+)") or 0) / 2**20
        ),
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
        "commit": _git("describe", "--always", "--dirty", "--exclude=*"),
        "date": datetime.date.today().isoformat(),
    }


def _find(path, pattern):
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:  # no Linux
        return None
    return found and found.group(1)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments):
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or None
