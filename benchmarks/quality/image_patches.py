"""Load real images as sequences of patches, for `balance.py`.

B images, S patches per image, C pixels per patch.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Where Debian's package `dataset-fashion-mnist` puts its files.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
NAMES = ("digits", "fashion_mnist")
LEVELS = 3


class Data(NamedTuple):
    """One part of a data set.

    tokens: float32 `(B, S, C)`. Zero mean and unit variance over all.
    ids: int32 `(B, S)`. Place and brightness of each patch, for `HashRouter`.
    labels: int32 `(B,)`.
    """

    tokens: np.ndarray
    ids: np.ndarray
    labels: np.ndarray


def is_installed(folder):
    """Return whether Fashion-MNIST is in `folder`."""
    return (folder / "train-images-idx3-ubyte.gz").exists()


def load(name, folder=FASHION_MNIST, train_images=10_000, test_images=2000):
    """Return the training part and the held-out part of a data set."""
    if name == "digits":
        return _digits()
    if not is_installed(folder):
        raise SystemExit(
            f"error: no Fashion-MNIST in {folder}. Install Debian's "
            "dataset-fashion-mnist, pass --fashion-mnist FOLDER, or --data "
            "digits."
        )
    parts = [
        (
            _read(folder, f"{part}-images-idx3"),
            _read(folder, f"{part}-labels-idx1"),
        )
        for part in ("train", "t10k")
    ]
    sizes = (train_images, test_images)
    parts = [(x[:n], y[:n]) for (x, y), n in zip(parts, sizes, strict=True)]
    return _prepared(*parts, patch=7)


def for_tuning(parts):
    """Split the training part, and hold out its last fifth.

    Settings are tuned on that fifth, not on the test images.
    """
    fitted, _ = parts
    cut = len(fitted.labels) * 4 // 5
    return [
        Data(*(field[rows] for field in fitted))
        for rows in (slice(cut), slice(cut, None))
    ]


def _digits():
    """Return scikit-learn's digits in 16 patches of 2 x 2, a fifth held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return _prepared((train_x, train_y), (test_x, test_y), patch=2)


def _read(folder, name):
    """Return the bytes of an IDX file in the shape of its header."""
    data = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, offset=4)
    return np.frombuffer(data, "u1", offset=4 + 4 * rank).reshape(shape)


def _prepared(train, test, patch):
    """Scale both parts by the training images, and cut the patches."""
    images = np.asarray(train[0], "float32")
    mean, std, top = images.mean(), images.std(), images.max()
    parts = []
    for x, y in (train, test):
        patches = _patches(np.asarray(x, "float32"), patch)
        tokens = (patches - mean) / std
        parts.append(Data(tokens, _ids(patches / top), np.asarray(y, "int32")))
    return parts


def _patches(images, size):
    """Cut `(B, H, W)` into `(B, S, size * size)`, row by row."""
    count, side = len(images), images.shape[1] // size
    cut = images.reshape(count, side, size, side, size)
    return cut.transpose(0, 1, 3, 2, 4).reshape(count, side**2, size**2)


def _ids(patches):
    """Number each patch by its place and the brightness of its quarters."""
    count, length, size = patches.shape
    side = int(size**0.5)
    half = side // 2  # an odd side loses its last row and column
    even = patches.reshape(count, length, side, side)
    even = even[:, :, : 2 * half, : 2 * half]
    quarters = even.reshape(count, length, 2, half, 2, half).mean((3, 5))
    levels = np.minimum(quarters * LEVELS, LEVELS - 1).astype("int32")
    powers = LEVELS ** np.arange(4).reshape(2, 2)
    code = (levels * powers).sum((2, 3))
    return (np.arange(length) + length * code).astype("int32")
