"""Define optimizers and options, and train with each for the page's tables.

`docs/optimizers-and-layouts.md` shows the results of
`test_optimizer_layouts.py`.
"""

import contextlib

import keras
import numpy as np

import keras_moe
from keras_moe.training import FusedAdam, RouterLearningRate

BATCH, STEPS, LENGTH, WIDTH = 16, 4, 3, 8
EMA = {"use_ema": True, "ema_momentum": 0.9}
OVERWRITTEN = {**EMA, "ema_overwrite_frequency": 2}
optimizers = keras.optimizers


def sgd(**options):
    return optimizers.SGD(0.1, momentum=0.9, **options)


def adam(**options):
    return optimizers.Adam(0.01, epsilon=1e-3, **options)


def multiple():
    """Return an optimizer with Adam for the experts and SGD for the rest."""
    found = optimizers.OptimizerMap(sgd(), {".*experts.*": adam()})
    return optimizers.MultiOptimizer(found)


def decaying():
    schedule = optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    return optimizers.SGD(schedule)


ROWS = {
    "`SGD`": sgd,
    "`Adadelta`": lambda: optimizers.Adadelta(1.0),
    "`Adafactor`": lambda: optimizers.Adafactor(0.01),
    "`Adagrad`": lambda: optimizers.Adagrad(0.05),
    "`Adam`": adam,
    "`AdamW`": lambda: optimizers.AdamW(0.01, epsilon=1e-3),
    "`Adamax`": lambda: optimizers.Adamax(0.01, epsilon=1e-3),
    "`Ftrl`": lambda: optimizers.Ftrl(0.05),
    "`Lamb`": lambda: optimizers.Lamb(0.01, epsilon=1e-3),
    "`Lion`": lambda: optimizers.Lion(0.01),
    "`LossScaleOptimizer`": lambda: optimizers.LossScaleOptimizer(sgd()),
    "`MultiOptimizer`": multiple,
    "`Muon`": lambda: optimizers.Muon(0.01, adam_lr_ratio=1, epsilon=1e-3),
    "`Nadam`": lambda: optimizers.Nadam(0.01, epsilon=1e-3),
    "`RMSprop`": lambda: optimizers.RMSprop(0.01, epsilon=1e-3),
    "`ScheduleFreeAdamW`": lambda: optimizers.ScheduleFreeAdamW(
        0.01, epsilon=1e-3
    ),
    "`keras_moe.training.FusedAdam`": lambda: FusedAdam(0.01, epsilon=1e-3),
    "`keras_moe.training.RouterLearningRate`": lambda: RouterLearningRate(
        sgd(), factor=0.5
    ),
    "`use_ema`": lambda: sgd(**EMA),
    "`ema_overwrite_frequency`": lambda: sgd(**OVERWRITTEN),
    "`ema_overwrite_frequency` of `Adam`": lambda: adam(**OVERWRITTEN),
    "`weight_decay`": lambda: sgd(weight_decay=0.1),
    "`clipnorm`": lambda: sgd(clipnorm=0.02),
    "`global_clipnorm`": lambda: sgd(global_clipnorm=0.05),
    "`clipvalue`": lambda: sgd(clipvalue=0.005),
    "`gradient_accumulation_steps`": lambda: sgd(gradient_accumulation_steps=2),
    "`loss_scale_factor`": lambda: sgd(loss_scale_factor=64.0),
    "`amsgrad` of `Adam`": lambda: adam(amsgrad=True),
    "`centered` of `RMSprop`": lambda: optimizers.RMSprop(
        0.01, epsilon=1e-3, centered=True, momentum=0.9
    ),
    "`nesterov`": lambda: sgd(nesterov=True),
    "a learning rate schedule": decaying,
}


def make_model(row):
    """Return a mixture between two dense layers; NumPy draws the weights."""
    inputs = keras.Input((LENGTH, WIDTH), name="tokens")
    x = keras.layers.Dense(WIDTH, "tanh", name="embed")(inputs)
    x = x + keras_moe.MoEBlock(
        4, 16, name="moe", load_balancing="global_batch"
    )(x)
    outputs = keras.layers.Dense(4, name="head")(x)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.4))
    model.compile(ROWS[row](), "mse")
    return model


def make_data(part=0, parts=1):
    """Return one part of each batch, for four steps."""
    shape = (STEPS, parts, BATCH // parts, LENGTH, WIDTH)
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    x = x[:, part].reshape(-1, LENGTH, WIDTH)
    return x, x[..., :4] + 1


def train(model, part=0, parts=1):
    """Train four steps in order."""
    x, y = make_data(part, parts)
    batch = BATCH // parts
    model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)


def trained(row, layout, part=0, parts=1, whole=contextlib.nullcontext):
    """Return the weights after training in a layout, or the error as text.

    Args:
        row: String. A key of `ROWS`.
        layout: Function from the row to the model.
        part: Integer. The part of each batch to train on.
        parts: Integer. Number of parts of a batch.
        whole: Function from the model to a context in which the model has its
            whole weights.
    """
    try:
        model = layout(row)
        train(model, part, parts)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    with whole(model):
        return weights_of(model)


def weights_of(model):
    """Return all trainable weights as one flat array."""
    values = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    return np.concatenate([np.ravel(value) for value in values])
