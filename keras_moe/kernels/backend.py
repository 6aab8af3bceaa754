"""The running backend's folder, selected once.

Keras does not change its backend while a process runs.
"""

import keras

from keras_moe.kernels.protocol import Backend


def _selected() -> Backend:
    name = keras.backend.backend()
    if name == "jax":
        from keras_moe.kernels import jax

        return jax
    if name == "tensorflow":
        from keras_moe.kernels import tensorflow

        return tensorflow
    if name == "torch":
        from keras_moe.kernels import torch

        return torch
    from keras_moe.kernels import generic

    return generic


backend: Backend = _selected()
