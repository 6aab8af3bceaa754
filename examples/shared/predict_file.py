"""Write the outputs of a `.keras` file under another backend.

    predict_file.py MODEL.keras INPUTS.npz OUT.npz

The script loads the file under the backend that KERAS_BACKEND names. INPUTS.npz
contains one array, or one array per named input of the model.
"""

import sys

import digits  # noqa: F401  (registers its layers)
import keras
import numpy as np


def main(model_path, inputs_path, out_path):
    """Load the model, run it, and write its outputs.

    The model is not compiled: its file records how it was compiled on the
    training backend, and on PyTorch `torch.compile` would take a minute.
    """
    model = keras.models.load_model(model_path, compile=False)
    with np.load(inputs_path) as arrays:
        inputs = dict(arrays)
    if len(inputs) == 1:
        (inputs,) = inputs.values()
    np.savez(out_path, outputs=model.predict(inputs, verbose=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
