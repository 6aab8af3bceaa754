"""Export a model whose weights depend on a seed.

Run `python killed_exports.py FOLDER FORMAT SEED`.
"""

import os
import pathlib
import sys

if os.environ["KERAS_BACKEND"] == "torch":
    import light_keras  # noqa: F401

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_moe  # noqa: E402

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


def make_model(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None, 8), name="tokens")
    return keras.Model(inputs, keras_moe.MoEBlock(4, 6)(inputs))


def main(folder, format, seed):
    target = pathlib.Path(folder, "artifact")
    model = make_model(int(seed))
    keras_moe.export.export(model, target, format, verify=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
