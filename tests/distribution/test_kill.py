"""Kill one of two processes, then the other, and compare the results."""

import keras
import numpy as np
import pytest
from distributed_model import make_model
from paths import SUPPORT
from run_once import run_once

from keras_moe.distribution.backup import generations, load_backup, state
from keras_moe.distribution.launching import launch

# Starting two processes three times exceeds the time limit.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a folder in which kill_worker.py trained and was killed twice."""

    def train(folder):
        code = launch(
            SUPPORT / "kill_worker.py",
            str(folder),
            backend=keras.backend.backend(),
            processes=2,
            restarts=2,
        )
        assert code == 0

    return run_once(tmp_path_factory, "killed", train)


@pytest.mark.parametrize("process", [0, 1])
def test_the_losses_equal_those_of_an_undisturbed_run(killed, process):
    """The run was killed once within an epoch, and once within a save."""
    found = np.load(killed / f"process{process}.npz")
    assert found["attempt"] == 2
    assert len(found["resumed"]) == 3
    np.testing.assert_allclose(
        found["resumed"], found["undisturbed"], rtol=0, atol=1e-6
    )


def test_one_process_loads_the_save_of_two(killed):
    """The weights equal those of the undisturbed run, too."""
    model = make_model(seed=7)
    load_backup(model, killed / "backup")
    expected = np.load(killed / "process0.npz")
    names = sorted(name for name in expected if name[0].isdigit())
    variables = state.own_variables_of(model)
    for name, variable in zip(names, variables, strict=False):
        found = keras.ops.convert_to_numpy(variable.value)
        np.testing.assert_allclose(
            found, expected[name], rtol=0, atol=1e-6, err_msg=name
        )
    assert len(variables) < len(names)  # the optimizer's variables follow


def test_no_half_save_is_left(killed):
    saves = generations.generations(killed / "backup")
    assert sorted((killed / "backup").iterdir()) == saves[::-1]
    assert len(saves) == 2
