"""Compare the two processes of the distributed example with one process."""

import json

import keras
import pytest
from backend import BACKEND
from paths import EXAMPLES

import distributed  # noqa: E402
from keras_moe.distribution import launching


@pytest.mark.one_backend
@pytest.mark.slow
def test_two_processes_are_one(tmp_path, capfd):
    """The losses are equal, and one process can use the saved file."""
    arguments = ("--quick", "--output", str(tmp_path / "out"))
    script = EXAMPLES / "distributed.py"
    code = launching.launch(script, *arguments, backend=BACKEND)
    assert code == 0, capfd.readouterr().err[-3000:]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["processes"] == 2 and found["backend"] == BACKEND

    training, (x, y) = distributed.load_digits(seed=0)
    keras.utils.set_random_seed(0)
    model = distributed.make_model()
    alone = model.fit(
        **distributed.own_arrays(*training), shuffle=False, verbose=0
    )
    assert found["losses"] == pytest.approx(alone.history["loss"], abs=1e-4)
    # Chance is 0.1, and one epoch gets most of the way to 1.
    assert found["held_out"]["accuracy"] > 0.8

    loaded = keras.models.load_model(tmp_path / "out" / "model.keras")
    loss, accuracy = loaded.evaluate(x, y, batch_size=64, verbose=0)
    assert accuracy == found["held_out"]["accuracy"]
    assert loss == pytest.approx(found["held_out"]["loss"], abs=1e-5)
    assert loaded.optimizer.iterations == model.optimizer.iterations
