"""Losses of several tasks as one.

N tasks.
"""

from collections.abc import Sequence

from keras import ops

from keras_moe.types import Tensor

TASK_KINDS = ("regression", "classification")


def uncertainty_weighted_loss(
    task_losses: Sequence[Tensor] | Tensor,
    log_variances: Tensor,
    kinds: Sequence[str],
) -> Tensor:
    """Weighs each task's loss by its noise (Kendall, Gal & Cipolla 2018,
    "Multi-Task Learning Using Uncertainty to Weigh Losses", eq. 7 and 10).

    The sum over tasks of `loss / (2 variance) + log(variance) / 2` for a
    regression, whose loss is the mean squared error, and of `loss / variance
    + log(variance) / 2` for a classification, whose loss is the
    cross-entropy. It is least where the variance is the loss, or twice the
    loss: a task that is all noise counts for little. The sum may be below
    zero.

    Args:
        task_losses: N scalars, or `(N,)`.
        log_variances: float32 `(N,)`, the logarithm of sigma squared; 0 is
            the start.
        kinds: N of `"regression"` and `"classification"`.

    Returns:
        float32 scalar.
    """
    if isinstance(task_losses, (list, tuple)):
        task_losses = ops.stack(list(task_losses))
    task_losses = ops.cast(task_losses, "float32")
    log_variances = ops.convert_to_tensor(log_variances)
    factors = [0.5 if kind == "regression" else 1.0 for kind in kinds]
    factors = ops.convert_to_tensor(factors, dtype="float32")
    precisions = factors * ops.exp(ops.negative(log_variances))
    return ops.sum(precisions * task_losses + 0.5 * log_variances)
