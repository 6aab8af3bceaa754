"""Test `save_model` in one process; the example's test uses two processes."""

import keras
import numpy as np
import pytest
from backend import draw

from keras_moe import MoEBlock
from keras_moe.distribution import save_model


def make_model():
    inputs = keras.Input((5,))
    return keras.Model(inputs, MoEBlock(2, 4)(inputs))


def test_the_file_is_the_model(tmp_path, rng):
    model, x = make_model(), draw(rng, 3, 5)
    save_model(model, tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    path.write_text("earlier")
    model = make_model()

    def save(path):
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(model, "save", save)
    with pytest.raises(OSError, match="no space"):
        save_model(model, path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_another_ending(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in \.keras"):
        save_model(make_model(), tmp_path / "model.h5")
