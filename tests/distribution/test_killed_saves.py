"""Kill one of two processes that save a model, and check the file.

`test_interrupted_writes.py` kills `save_model` at each step in one process.
"""

import keras
import pytest
from paths import SUPPORT

from keras_moe.distribution.launching import launch

# Two processes are started seven times.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() == "jax",
        reason="one process cannot load a file while all share a mesh",
    ),
]

SCRIPT = SUPPORT / "kill_saves.py"
KILLS = 5


def test_kill_9_of_the_chief_and_of_another_process(tmp_path):
    code = launch(
        SCRIPT,
        str(tmp_path),
        backend=keras.backend.backend(),
        processes=2,
        restarts=KILLS + 1,
        logs=tmp_path / "logs",
    )
    assert code == 0
    versions = (tmp_path / "versions.txt").read_text().split()
    # Each attempt found a whole file. It has the first version until a save
    # is killed after its last step.
    assert len(versions) == KILLS + 1
    assert versions[:3] == ["0"] * 3
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"lines.txt", "logs", "model.keras", "versions.txt"}
