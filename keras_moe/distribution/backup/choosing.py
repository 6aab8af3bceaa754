"""Choose the save to load in process 0, for every process."""

import json
import pathlib
import warnings
from typing import Any

from keras_moe.distribution.backup import contents, generations
from keras_moe.distribution.backup.processes import Processes

Path = pathlib.Path


def choose(
    directory: Path, processes: Processes
) -> tuple[Path | None, dict[str, Any]]:
    """Return the newest undamaged save and its manifest, or `(None, {})`.

    Every process must call this function. The chief (process 0) chooses, and
    warns if newer saves are damaged.

    Args:
        directory: Folder of the saves.
        processes: The processes of the training.

    Raises:
        ValueError: If all saves are damaged, in process 0.
        OSError: If a process cannot access the chosen save, if a file cannot
            be read, or, in the other processes, if process 0 fails.
    """
    error: Exception | None = None
    found = b""
    if processes.index == 0:
        try:
            found = json.dumps(_newest(directory)).encode()
        except (OSError, ValueError) as raised:
            error = raised
    processes.agree(error)
    name, manifest = json.loads(processes.from_chief(found))
    if name is None:
        return None, {}
    generation = directory / name
    processes.agree(_blindness(generation))
    return generation, manifest


def tidy(
    directory: Path, generation: Path | None, processes: Processes
) -> None:
    """Make the folder of the saves, and remove damaged and incomplete saves.

    Every process must call this function. Damaged saves would be counted among
    those that are kept. If the folder cannot be made, the error is raised
    before the training.

    Args:
        directory: Folder of the saves.
        generation: The save that was loaded, or `None`. All newer saves are
            removed.
        processes: The processes of the training.

    Raises:
        OSError: If the folder cannot be made, or a save cannot be removed.
    """
    error = None
    if processes.index == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            generations.clear(directory)
            for newer in generations.generations(directory):
                if newer == generation:
                    break
                generations.remove(newer)
        except OSError as raised:
            error = raised
    processes.agree(error)


def _newest(directory: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the name of the newest undamaged save and its manifest."""
    generation, manifest, torn = generations.newest_whole(
        directory, contents.check
    )
    if generation is None and torn:
        raise ValueError(
            "`directory` must contain an undamaged save. Received: "
            f"directory={str(directory)!r}, with {torn}. Delete it to start "
            "again from the beginning."
        )
    if generation is None:
        return None, {}
    if torn:
        warnings.warn(
            f"Damaged saves are skipped: {torn}. {generation.name} is loaded.",
            stacklevel=2,
        )
    if contents.is_unchecked(manifest):
        warnings.warn(
            f"{generation.name} was saved by a version of keras_moe that wrote "
            "no checksum of the manifest and no configuration of the model, so "
            "damage to the manifest, or another model of the same shapes, is "
            "not detected.",
            stacklevel=2,
        )
    return generation.name, manifest


def _blindness(generation: Path) -> OSError | None:
    """Return an error if this process cannot access the chosen save."""
    if generation.is_dir():
        return None
    return OSError(
        "`directory` must be on a file system that all processes can access. "
        f"Received: {str(generation)!r}, which exists in process 0 but not in "
        "this process. Pass a shared folder."
    )
