"""Load every `.keras` file of a folder, on any backend.

The prediction of NAME.keras for x.npy is written to NAME.BACKEND.npy.
"""

import pathlib

import keras
import numpy as np
import zoo  # noqa: F401  (registers the layers)


def main(folder):
    folder = pathlib.Path(folder)
    x = np.load(folder / "x.npy")
    for path in sorted(folder.glob("*.keras")):
        model = keras.saving.load_model(path)
        # A file from JAX has it enabled; PyTorch would compile for 30 seconds.
        model.jit_compile = False
        name = f"{path.stem}.{keras.backend.backend()}.npy"
        np.save(folder / name, model.predict(x, verbose=0))
