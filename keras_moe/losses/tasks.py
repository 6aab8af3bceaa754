"""Combine the losses of several tasks.

N tasks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_moe.checks import (
    as_number,
    check_choice,
    check_list,
    is_static,
)
from keras_moe.types import Tensor

TASK_KINDS = ("regression", "classification")


def uncertainty_weighted_loss(
    task_losses: Sequence[Tensor] | Tensor,
    log_variances: Tensor,
    kinds: Sequence[str],
) -> Tensor:
    """Sum task losses, each weighted by the task's variance.

    It is the sum of `loss / (2 variance) + log(variance) / 2` for regressions,
    whose loss is the mean squared error, and of `loss / variance +
    log(variance) / 2` for classifications, whose loss is the cross-entropy. It
    is smallest if the variance equals the loss of a regression, or twice the
    loss of a classification, so that noisy tasks get small weights. The sum may
    be negative.

    Reference: Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using
    Uncertainty to Weigh Losses", eq. 7 and 10.

    Args:
        task_losses: N scalars, or `(N,)`.
        log_variances: float32 `(N,)`. The logarithm of each task's variance
            sigma squared, typically initialized with 0.
        kinds: N strings, `"regression"` or `"classification"`.

    Returns:
        float32 scalar.

    Example:

    ```python
    loss = keras_moe.losses.uncertainty_weighted_loss(
        [ops.convert_to_tensor(0.5), ops.convert_to_tensor(1.2)],
        log_variances=ops.zeros((2,)),
        kinds=["regression", "classification"],
    )  # 0.5 / 2 + 1.2
    ```
    """
    log_variances = ops.convert_to_tensor(log_variances)
    kinds = _check_kinds(kinds, log_variances.shape[0])
    if is_static(task_losses) and not isinstance(task_losses, np.ndarray):
        task_losses = ops.stack(_check_losses(task_losses, len(kinds)))
    task_losses = ops.cast(task_losses, "float32")
    factors = [0.5 if kind == "regression" else 1.0 for kind in kinds]
    factors = ops.convert_to_tensor(factors, dtype="float32")
    precisions = factors * ops.exp(ops.negative(log_variances))
    return ops.sum(precisions * task_losses + 0.5 * log_variances)


def _check_kinds(kinds: Any, number: int) -> list[str]:
    """Return `kinds` as a list if there is one for each task."""
    kinds = check_list("kinds", kinds, "kinds, one for each task")
    if len(kinds) == number:
        return [check_choice("kinds", kind, TASK_KINDS) for kind in kinds]
    raise ValueError(
        "`kinds` must have one entry for each entry of `log_variances`. "
        f"Received: kinds={kinds!r}, {number} log variances. Pass as many "
        "kinds as log variances."
    )


def _check_losses(losses: Any, number: int) -> list[Tensor]:
    """Return the losses as a list if there is one for each task."""
    given = check_list("task_losses", losses, "scalars, one for each task")
    plain = [one for one in given if is_static(one)]
    arrays = [isinstance(one, np.ndarray) for one in plain]
    numbers = [as_number(one) is not None for one in plain]
    if len(given) == number and all(map(max, arrays, numbers)):
        return given
    raise ValueError(
        f"`task_losses` must be {number} scalars, one for each task. Received: "
        f"task_losses={given!r}. Pass as many as there are `kinds`."
    )
