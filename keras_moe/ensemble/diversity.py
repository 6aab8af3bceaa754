"""How far the mistakes of several classifiers differ.

M members, N samples. `correct` is bool `(M, N)`: whether member m is right on
sample n. These are pairwise measures of Kuncheva & Whitaker 2003, "Measures of
Diversity in Classifier Ensembles", from four counts for each pair of members:
n11 both right, n00 both wrong, n10 and n01 only the one, only the other.
"""

import numpy as np


def disagreement(correct: np.ndarray) -> np.ndarray:
    """Returns the share of samples on which one of two is right.

    Args:
        correct: bool `(M, N)`.

    Returns:
        float64 `(M, M)`, symmetric; 0 where two make the same mistakes, and
        on the diagonal.
    """
    n11, n10, n01, n00 = _counts(correct)
    return (n10 + n01) / (n11 + n10 + n01 + n00)


def q_statistic(correct: np.ndarray) -> np.ndarray:
    """Returns Yule's Q: -1 diverse, 0 independent, 1 alike.

    `(n11 * n00 - n01 * n10) / (n11 * n00 + n01 * n10)`.

    Args:
        correct: bool `(M, N)`.

    Returns:
        float64 `(M, M)`, symmetric; NaN where the denominator is 0, as for a
        member that is always right beside one that never errs with it.
    """
    n11, n10, n01, n00 = _counts(correct)
    same, apart = n11 * n00, n10 * n01
    defined = same + apart > 0
    return np.where(
        defined, (same - apart) / np.where(defined, same + apart, 1), np.nan
    )


def double_fault(correct: np.ndarray) -> np.ndarray:
    """Returns the share of samples on which both are wrong.

    Args:
        correct: bool `(M, N)`.

    Returns:
        float64 `(M, M)`, symmetric; a member's error rate on the diagonal.
    """
    n11, n10, n01, n00 = _counts(correct)
    return n00 / (n11 + n10 + n01 + n00)


def mean_over_pairs(pairwise: np.ndarray) -> float:
    """Returns the mean of `(M, M)` over the pairs of unlike members.

    Undefined pairs (NaN) are left out; NaN where none is left.
    """
    pairwise = np.asarray(pairwise)
    values = pairwise[np.triu_indices(len(pairwise), 1)]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def is_correct(
    outputs: np.ndarray, labels: np.ndarray, from_logits: bool = False
) -> np.ndarray:
    """Returns whether each member is right on each sample.

    Args:
        outputs: float `(M, N, ..., C)`, probabilities or logits.
        labels: int `(N, ...)` or `(N, ..., 1)`, or one-hot `(N, ..., C)`.
        from_logits: whether a lone output is right above 0, not above 0.5.

    Returns:
        bool `(M, N * ...)`.

    Raises:
        ValueError: where the labels fit no output.
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
        return (classes == labels).reshape(len(outputs), -1)
    raise ValueError(
        f"`y` must hold classes of shape {shape[:-1]} or one-hot rows of "
        f"shape {shape}. Received: shape {labels.shape}. Pass one label an "
        "output."
    )


def _counts(correct):
    """Returns n11, n10, n01, n00, each float64 `(M, M)`."""
    correct = np.asarray(correct)
    if correct.ndim != 2 or correct.dtype != bool or not correct.size:
        raise ValueError(
            "`correct` must be bool of shape (members, samples), not empty. "
            f"Received: {correct.dtype} of shape {correct.shape}. Compare each "
            "member's predicted classes with the labels."
        )
    right, wrong = correct.astype("float64"), (~correct).astype("float64")
    return right @ right.T, right @ wrong.T, wrong @ right.T, wrong @ wrong.T
