"""Export and save models as a line of text, for the tests of files."""

import pathlib

import keras
from backend import BACKEND

from keras_moe.distribution import save_model
from keras_moe.export import exporting
from keras_moe.export.formats import FORMATS
from keras_moe.export.signature import as_functional

FORMAT = "torch" if BACKEND == "torch" else "tf_saved_model"


def make_model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])


class TextExport:
    """Exports a model to a folder as a text.

    Only Python code runs, so a forked process can call it.
    """

    def __init__(self, monkeypatch):
        self.model = as_functional(make_model())
        monkeypatch.setattr(exporting, "as_functional", lambda model, _: model)
        monkeypatch.setattr(exporting, "_write", self.write)

    def __call__(self, folder, text, format=FORMAT):
        self.text = text
        exporting.export(self.model, folder, format, verify=False)

    def write(self, model, format, writer, folder):
        for part in FORMATS[format].parts:
            path = folder / part
            path.parent.mkdir(exist_ok=True)
            path.write_text(self.text)


class TextSave:
    """Saves a model to a file as a text."""

    def __init__(self, monkeypatch):
        self.model = make_model()
        monkeypatch.setattr(self.model, "save", self.write)

    def __call__(self, file, text):
        self.text = text
        save_model(self.model, file)

    def write(self, path):
        path = pathlib.Path(path)
        path.write_text(self.text[:1])
        path.write_text(self.text)


def foreign_file(folder):
    (folder / "thesis.tex").write_text("mine")


def names(folder):
    return sorted(path.name for path in folder.iterdir())
