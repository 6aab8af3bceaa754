"""What `quickstart.py` and other examples run under another backend.

    quickstart_worker.py MODEL.keras INPUTS.npz OUT.npz

Loads the `.keras` file under the backend that KERAS_BACKEND names and writes
its outputs. INPUTS.npz holds one array, or one for each of a model's named
inputs.
"""

import sys

import keras
import numpy as np
import quickstart_model  # noqa: F401  registers its layers


def main(model_path, inputs_path, out_path):
    """Not compiled: the file says how the backend that trained it compiled,
    and that is not right for another one (torch would spend a minute on it).
    """
    model = keras.models.load_model(model_path, compile=False)
    with np.load(inputs_path) as arrays:
        inputs = dict(arrays)
    if len(inputs) == 1:
        (inputs,) = inputs.values()
    np.savez(out_path, outputs=model.predict(inputs, verbose=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
