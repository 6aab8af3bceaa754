"""What docs/from-laptop-to-cluster.md says is so."""

import pathlib
import re
import shlex

import pytest
from backend import BACKEND

from keras_moe import cli
from keras_moe.distribution.jobs import job_text

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from-laptop-to-cluster.md").read_text()
COMMANDS = re.findall(r"^keras-moe (launch [^>\n]*)", PAGE, re.MULTILINE)


@pytest.mark.skipif(BACKEND != "torch", reason="of no backend")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command, monkeypatch, capsys):
    """Each runs, but for what it starts; scripts named by a path exist."""
    started = []

    def start(script, *arguments, **options):
        started.append(script)
        return 0

    for name in ("launch", "launch_on_ray"):
        monkeypatch.setattr(f"keras_moe.cli.launching.{name}", start)
    assert cli.main(shlex.split(command)) == 0
    assert started or "--print" in command and capsys.readouterr().out
    for script in re.findall(r"\S+/\S+\.py", command):
        assert (ROOT / script).is_file()


def test_the_job_is_what_is_printed():
    text = job_text("slurm", "train.py", backend="jax", nodes=4)
    assert f"<!-- slurm -->\n```bash\n{text}```\n<!-- /slurm -->" in PAGE
