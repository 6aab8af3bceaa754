"""Kill a process at each step of a save.

Run `python kill_backup_steps.py FOLDER GENERATIONS_PY`. Each process that is
killed is a fork of this one, which has no threads and no backend, because it
has imported only the module that writes. The script prints a JSON list with,
for each step, whether the fork was killed, the epoch of the newest whole save,
the torn saves, and the names of the saves after the next save.
"""

import importlib.util
import json
import os
import pathlib
import signal
import sys
import types

import disk_steps


def load(path):
    # This package has the name of ours, but imports neither Keras nor layers.
    package = types.ModuleType("keras_moe")
    package.__path__ = [str(pathlib.Path(path).parents[2])]
    sys.modules["keras_moe"] = package
    spec = importlib.util.spec_from_file_location("generations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(generations, folder, number):
    def fill(folder):
        (folder / "arrays.npz").write_text(f"arrays {number}" * 1000)
        (folder / "process-0.npz").write_text(f"process {number}")
        return {"epoch": number}

    generations.write(folder, fill, keep=2)


def save_and_die(generations, folder, number, at):
    """Return whether the save of a fork was killed at step `at`."""
    child = os.fork()
    if child == 0:
        steps = []

        def die(event, arguments):
            steps.append(event)
            if len(steps) == at + 1:
                os.kill(os.getpid(), signal.SIGKILL)

        with disk_steps.before_each_step(die):
            write(generations, folder, number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def read(generations, folder):
    generation, manifest, torn = generations.newest_whole(folder)
    number = manifest.get("epoch")
    if generation is not None:
        text = (generation / "process-0.npz").read_text()
        assert text == f"process {number}"
    return number, torn


def main(folder, path):
    generations = load(path)
    found = []
    for at in range(1000):
        saves = pathlib.Path(folder, str(at))
        for number in range(3):
            write(generations, saves, number)
        killed = save_and_die(generations, saves, 3, at)
        number, torn = read(generations, saves)
        write(generations, saves, 4)
        names = sorted(p.name for p in saves.iterdir())
        found.append([killed, number, torn, names])
        if not killed:
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
