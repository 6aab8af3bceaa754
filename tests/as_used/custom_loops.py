"""Train by hand, with a loop in each backend's style as in Keras's guides."""

import keras


def train_by_hand(model, batches, optimizer):
    """Take one optimizer step per batch, and return the loss before each."""
    step = {
        "jax": jax_step,
        "tensorflow": tensorflow_step,
        "torch": torch_step,
    }[keras.backend.backend()](model, optimizer)
    return [float(step(x, y)) for x, y in batches]


def mse(y, predicted):
    """Return the mean squared error."""
    return keras.ops.mean(keras.ops.square(y - predicted))


def tensorflow_step(model, optimizer):
    """Return a step that runs under `tf.function` and `GradientTape`."""
    import tensorflow as tf

    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = mse(y, model(x, training=True)) + sum(model.losses)
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply(gradients, model.trainable_weights)
        return loss

    return lambda x, y: step(tf.constant(x), tf.constant(y))


def torch_step(model, optimizer):
    """Return a step that calls `backward`."""
    import torch

    def step(x, y):
        model.zero_grad()
        x, y = torch.tensor(x), torch.tensor(y)
        loss = mse(y, model(x, training=True)) + sum(model.losses)
        loss.backward()
        gradients = [w.value.grad for w in model.trainable_weights]
        with torch.no_grad():
            optimizer.apply(gradients, model.trainable_weights)
        return loss.detach()

    return step


def jax_step(model, optimizer):
    """Return a step that calls `stateless_call` under `jax.jit`."""
    import jax

    optimizer.build(model.trainable_variables)

    def compute_loss(trainable, non_trainable, x, y):
        predicted, non_trainable, losses = model.stateless_call(
            trainable, non_trainable, x, training=True, return_losses=True
        )
        return mse(y, predicted) + sum(losses), non_trainable

    @jax.jit
    def stateless_step(state, x, y):
        trainable, non_trainable, slots = state
        (loss, non_trainable), gradients = jax.value_and_grad(
            compute_loss, has_aux=True
        )(trainable, non_trainable, x, y)
        trainable, slots = optimizer.stateless_apply(
            slots, gradients, trainable
        )
        return loss, (trainable, non_trainable, slots)

    def step(x, y):
        variables = (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
        state = tuple([v.value for v in group] for group in variables)
        loss, state = stateless_step(state, x, y)
        for group, values in zip(variables, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return loss

    return step
