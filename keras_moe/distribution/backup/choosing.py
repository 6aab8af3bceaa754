"""Which save to load: the chief's choice, on every process."""

import json
import pathlib
import warnings

from keras_moe.distribution.backup import contents, generations
from keras_moe.distribution.backup.processes import Processes

Path = pathlib.Path


def choose(directory: Path, processes: Processes) -> tuple[Path | None, dict]:
    """Return the newest whole save and its manifest, or `(None, {})`.

    Every process must call it. The chief chooses, and warns if newer saves are
    torn.

    Raises:
        ValueError: if all saves are torn; OSError on other processes.
        OSError: if a process does not see what the chief chose, or if a file
            cannot be read.
    """
    error, found = None, b""
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
    """Make the folder; remove torn saves newer than `generation`, and parts.

    Every process must call it. Torn saves would be counted among those that
    are kept. A folder that cannot be made is an error before the training.

    Raises:
        OSError: if it cannot be made, or a save cannot be removed.
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


def _newest(directory):
    """Return the name of the newest whole save and its manifest; warn."""
    generation, manifest, torn = generations.newest_whole(
        directory, contents.check
    )
    if generation is None and torn:
        raise ValueError(
            "`directory` must hold a save that is whole. Received: "
            f"directory={str(directory)!r}, with {torn}. Delete it to start "
            "anew."
        )
    if generation is None:
        return None, {}
    if torn:
        warnings.warn(
            f"Torn saves are passed over: {torn}. {generation.name} is loaded.",
            stacklevel=2,
        )
    if contents.is_unchecked(manifest):
        warnings.warn(
            f"{generation.name} was saved by a version of keras_moe that wrote "
            "no checksum of the manifest and no configuration of the model: "
            "damage to the manifest, or another model of the same shapes, "
            "goes unnoticed.",
            stacklevel=2,
        )
    return generation.name, manifest


def _blindness(generation):
    if generation.is_dir():
        return None
    return OSError(
        "`directory` must lie on a file system that all processes see. "
        f"Received: {str(generation)!r}, which the chief sees and this process "
        "does not. Pass a shared folder."
    )
