"""Make the functions to time: a forward pass, gradients, a training step.

`forward` and `train` are `predict_on_batch` and `train_on_batch` of a compiled
model, as users call them. `f+b` is the forward and backward pass of the layer
alone, without loss and optimizer. The inputs are converted to tensors of the
backend before the clock starts. The first layer of the model that trains scales
its inputs by a weight of width D, because inside a network the gradient of a
layer's inputs is also needed.

N rows, D hidden_dim.
"""

import keras
from keras import ops

KINDS = ("forward", "f+b", "train")
BACKEND = keras.backend.backend()


def call_of(kind, layer, x, dy, compiled=False):
    """Return the function to time, which has no arguments.

    Args:
        kind: One of `KINDS`.
        layer: Keras layer from `(N, D)` to `(N, D)`.
        x: `(N, D)` NumPy array. The inputs.
        dy: `(N, D)` NumPy array. The gradient of the outputs, or the targets.
        compiled: bool. `jit_compile=True` on TensorFlow, `torch.compile` on
            PyTorch; JAX always compiles.

    Returns:
        The function. With `forward` it returns the outputs. With `f+b` it
        returns the outputs, the gradient of the inputs, and a list of the
        gradients of the weights.
    """
    x = ops.convert_to_tensor(x, layer.compute_dtype)
    dy = ops.convert_to_tensor(dy, layer.compute_dtype)
    if kind == "f+b":
        return _GRADIENTS[BACKEND](layer, x, dy, compiled)
    if kind == "forward":
        model = model_of(x.shape, layer, compiled=compiled)
        return lambda: model.predict_on_batch(x)
    model = model_of(x.shape, Scale(), layer, compiled=compiled)
    return lambda: model.train_on_batch(x, dy)


class Scale(keras.layers.Layer):
    """Multiplies its inputs by a trained `(D,)`, in place of a first layer."""

    def build(self, input_shape):
        self.scale = self.add_weight(input_shape[-1:], initializer="ones")

    def call(self, x):
        return x * ops.cast(self.scale, x.dtype)


def model_of(shape, *layers, compiled=False):
    """Return a compiled model of the layers, with static shapes."""
    inputs = keras.Input(shape[1:], shape[0], dtype=layers[-1].compute_dtype)
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    jit_compile = "auto" if BACKEND == "jax" else compiled
    model.compile(keras.optimizers.SGD(1e-5), "mse", jit_compile=jit_compile)
    return model


def _jax_gradients(layer, x, dy, compiled):
    import jax

    _build(layer, x)
    weights = [v.value for v in layer.trainable_variables]
    frozen = [v.value for v in layer.non_trainable_variables]

    @jax.jit
    def run(weights, x, dy):
        def outputs(weights, x):
            return layer.stateless_call(weights, frozen, x, training=False)[0]

        y, vjp = jax.vjp(outputs, weights, x)
        d_weights, dx = vjp(dy)
        return y, dx, d_weights

    def call():
        return jax.block_until_ready(run(weights, x, dy))

    return call


def _tensorflow_gradients(layer, x, dy, compiled):
    import tensorflow as tf

    _build(layer, x)

    @tf.function(jit_compile=compiled)
    def run(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=False)
        values = [v.value for v in layer.trainable_variables]
        dx, *d_weights = tape.gradient(y, [x, *values], output_gradients=dy)
        return y, dx, d_weights

    return lambda: run(x, dy)


def _torch_gradients(layer, x, dy, compiled):
    import torch

    _build(layer, x)
    x = x.detach().requires_grad_()
    values = [v.value for v in layer.trainable_variables]
    run = torch.compile(layer) if compiled else layer

    def call():
        y = run(x, training=False)
        dx, *d_weights = torch.autograd.grad(y, [x, *values], dy)
        return y.detach(), dx, d_weights

    return call


def _build(layer, x):
    if not layer.built:
        layer.build(tuple(x.shape))


_GRADIENTS = {
    "jax": _jax_gradients,
    "tensorflow": _tensorflow_gradients,
    "torch": _torch_gradients,
}


def to_numpy(tensor):
    """Return a float32 NumPy array of a tensor or array."""
    if BACKEND == "torch":
        tensor = ops.convert_to_tensor(tensor).detach().float()
    return ops.convert_to_numpy(tensor).astype("float32")
