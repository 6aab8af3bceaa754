"""Measure how far the mistakes of several classifiers differ.

M members, N samples. `correct` is bool `(M, N)`: whether member m is right on
sample n. These are pairwise measures of Kuncheva & Whitaker 2003, "Measures of
Diversity in Classifier Ensembles", from four counts of samples for each pair
of members: n11 on which both are right, n00 on which both are wrong, n10 and
n01 on which only the first or only the second is right.
"""

import numpy as np


def disagreement(correct: np.ndarray) -> np.ndarray:
    """Return the share of samples on which exactly one of two is right.

    Args:
        correct: bool `(M, N)`, not empty.

    Returns:
        float64 `(M, M)`, symmetric. It is 0 for two members that are wrong on
        the same samples, and on the diagonal.

    Raises:
        ValueError: If `correct` is not bool `(M, N)`, or is empty.

    Example:

    ```python
    correct = np.array([[True, True, False], [True, False, False]])
    keras_moe.ensemble.disagreement(correct)[0, 1]  # 1 / 3
    ```
    """
    n11, n10, n01, n00 = _counts(correct)
    shares: np.ndarray = (n10 + n01) / (n11 + n10 + n01 + n00)
    return shares


def q_statistic(correct: np.ndarray) -> np.ndarray:
    """Return Yule's Q: -1 for opposite, 0 for independent, 1 for like mistakes.

    `(n11 * n00 - n01 * n10) / (n11 * n00 + n01 * n10)`.

    Args:
        correct: bool `(M, N)`, not empty.

    Returns:
        float64 `(M, M)`, symmetric. It is NaN if the denominator is 0, for
        instance for a member that is always right and any other one.

    Raises:
        ValueError: If `correct` is not bool `(M, N)`, or is empty.

    Example:

    ```python
    correct = np.array([[True, True, False], [True, False, False]])
    keras_moe.ensemble.q_statistic(correct)[0, 1]  # 1.0
    ```
    """
    n11, n10, n01, n00 = _counts(correct)
    same, apart = n11 * n00, n10 * n01
    defined = same + apart > 0
    return np.where(
        defined, (same - apart) / np.where(defined, same + apart, 1), np.nan
    )


def double_fault(correct: np.ndarray) -> np.ndarray:
    """Return the share of samples on which both of two members are wrong.

    Args:
        correct: bool `(M, N)`, not empty.

    Returns:
        float64 `(M, M)`, symmetric. The diagonal holds the members' error
        rates.

    Raises:
        ValueError: If `correct` is not bool `(M, N)`, or is empty.

    Example:

    ```python
    correct = np.array([[True, True, False], [True, False, False]])
    keras_moe.ensemble.double_fault(correct)[0, 1]  # 1 / 3
    ```
    """
    n11, n10, n01, n00 = _counts(correct)
    shares: np.ndarray = n00 / (n11 + n10 + n01 + n00)
    return shares


def mean_over_pairs(pairwise: np.ndarray) -> float:
    """Return the mean of `(M, M)` over the pairs of different members.

    Undefined pairs (NaN) are left out. If none is left, the mean is NaN.

    Example:

    ```python
    correct = np.array([[True, True, False], [True, False, False]])
    pairwise = keras_moe.ensemble.disagreement(correct)
    keras_moe.ensemble.mean_over_pairs(pairwise)  # 1 / 3
    ```
    """
    pairwise = np.asarray(pairwise)
    values = pairwise[np.triu_indices(len(pairwise), 1)]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def is_correct(
    outputs: np.ndarray, labels: np.ndarray, from_logits: bool = False
) -> np.ndarray:
    """Return whether each member is right on each sample.

    Args:
        outputs: float `(M, N, ..., C)`. Probabilities or logits.
        labels: int `(N, ...)` or `(N, ..., 1)`, or one-hot `(N, ..., C)`.
        from_logits: bool. Whether the outputs are logits, so that the threshold
            for C = 1 is 0 instead of 0.5. Defaults to `False`.

    Returns:
        bool `(M, N * ...)`.

    Raises:
        ValueError: If the labels have another shape.
    """
    labels, shape = np.asarray(labels), outputs.shape[1:]
    if shape[-1] == 1:
        classes = (outputs[..., 0] > (0.0 if from_logits else 0.5)).astype(int)
    else:
        classes = outputs.argmax(-1)
        if labels.shape == shape:
            labels = labels.argmax(-1)
    if labels.shape == (*shape[:-1], 1):
        labels = labels[..., 0]
    if labels.shape == shape[:-1]:
        correct: np.ndarray = (classes == labels).reshape(len(outputs), -1)
        return correct
    raise ValueError(
        f"`y` must hold classes of shape {shape[:-1]} or one-hot rows of "
        f"shape {shape}. Received: shape {labels.shape}. Pass one label per "
        "output."
    )


def _counts(
    correct: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return n11, n10, n01, and n00, each float64 `(M, M)`."""
    correct = np.asarray(correct)
    if correct.ndim != 2 or correct.dtype != bool or not correct.size:
        raise ValueError(
            "`correct` must be bool of shape (members, samples), not empty. "
            f"Received: {correct.dtype} of shape {correct.shape}. Compare each "
            "member's predicted classes with the labels."
        )
    right, wrong = correct.astype("float64"), (~correct).astype("float64")
    return right @ right.T, right @ wrong.T, wrong @ right.T, wrong @ wrong.T
