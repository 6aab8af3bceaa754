"""Define the options of the command line that several examples share."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from shared.program import ROOT, ExampleError, check_packages, prepare

Backend = Annotated[
    Literal["jax", "tensorflow", "torch"], typer.Option(help="Keras backend.")
]
Epochs = Annotated[int, typer.Option(min=1, help="Epochs of each training.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds.")]
Quick = Annotated[bool, typer.Option(help="Small and fast, not accurate.")]
Output = Annotated[
    Path | None, typer.Option(help="Folder; saved_models/NAME by default.")
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of data sets.", envvar="KERAS_MOE_DATA_DIR"),
]


@dataclass
class Options:
    """The values of the command line; `output` and `data` are folders."""

    name: str
    backend: str
    seeds: int
    quick: bool
    output: Path | None = None
    data: Path | None = None
    epochs: int = 1

    def __post_init__(self):
        self.output = self.output or ROOT / "saved_models" / self.name

    def count(self, full, quick):
        """Return the size `full`, or `quick` in the quick form."""
        return quick if self.quick else full

    def source(self, *parts):
        """Return the path of a data set in `data`, or `data` if it is a file.

        Raises:
            ExampleError: If the data set does not exist.
        """
        remedy = f"Name the folder that {'/'.join(parts)} is in by --data"
        if self.data is None:
            raise ExampleError(f"no data. {remedy} or KERAS_MOE_DATA_DIR.")
        if self.data.is_file():
            return self.data
        path = self.data.joinpath(*parts)
        if not path.exists():
            raise ExampleError(f"{path} does not exist. {remedy}.")
        return path


def start(options, job, packages=(), sources=()):
    """Check the requirements, start Keras, and run a job.

    Args:
        options: `Options`.
        job: function from the options to the exit code.
        packages: Names of modules that the job needs, in addition to the
            quickstart's.
        sources: Data sets that must exist; see `Options.source`.

    Returns:
        int. The exit code of the job, or 1 if a requirement is missing.
    """
    try:
        for parts in sources:
            options.source(*parts)
        check_packages(packages)
        prepare(options)
        return job(options)
    except ExampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
