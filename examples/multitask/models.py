"""Build and train the mixtures and the single-task models of `main.py`.

D features, H width of a tower, F intermediate_dim.
"""

import keras
from keras import layers

import keras_moe

KINDS = ("MMoE", "PLE", "single")

NUM_EXPERTS = 6
MMOE_DIM = 28
PLE_DIM = 23  # 2 shared experts and 2 per task, in each of 2 layers
WIDTH = 16
# Dropout and learning rate were chosen by the mean validation AUC of all
# models.
DROPOUT = 0.4
LEARNING_RATE = 5e-3
BATCH_SIZE = 512


def build_model(kind, num_features, intermediate_dim=None):
    """Return a model of a kind: "MMoE" or "PLE" (two outputs), or "single"."""
    inputs = keras.Input((num_features,))
    style = {"output_dim": WIDTH, "dropout": DROPOUT}
    if kind == "MMoE":
        trunks = keras_moe.MultiGateMoE(
            NUM_EXPERTS, MMOE_DIM, num_tasks=2, **style
        )(inputs)
    elif kind == "PLE":
        trunks = keras_moe.PLE(2, 2, 2, PLE_DIM, num_layers=2, **style)(inputs)
    else:
        trunks = [keras_moe.Expert(intermediate_dim, **style)(inputs)]
    outputs = [
        layers.Dense(1, activation="sigmoid")(layers.Activation("relu")(x))
        for x in trunks
    ]
    return keras.Model(inputs, outputs, name=kind)


def single_dim(num_features, parameters):
    """Return F of a single-task model with at least the given parameters.

    The model has `(D + 1) F` parameters before its hidden units, `(F + 1) H`
    after them, and `H + 1` in the tower.
    """
    rest = parameters - WIDTH - (WIDTH + 1)
    return -(-rest // (num_features + 1 + WIDTH))


def train(model, data, validation, epochs):
    """Train with Adam; keep the weights of the smallest validation loss."""
    steps = epochs * -(-len(data[0]) // BATCH_SIZE)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        ),
        ["binary_crossentropy"] * len(model.outputs),
    )
    best = keras.callbacks.EarlyStopping(
        patience=epochs, restore_best_weights=True
    )
    model.fit(
        *data,
        validation_data=validation,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        callbacks=[best],
        verbose=0,
    )
    return model


def scores(model, data):
    """Return the AUC of each output."""
    from sklearn.metrics import roc_auc_score

    x, y = data
    predictions = model.predict(x, batch_size=4096, verbose=0)
    if not isinstance(predictions, list):
        predictions = [predictions]
    return [
        float(roc_auc_score(one, other))
        for one, other in zip(y, predictions, strict=True)
    ]
