"""Refuse optimizers that fail if several processes divide the weights.

`docs/optimizers-and-layouts.md` has a table of them, which a test checks.
"""

from typing import Any

import keras

from keras_moe.distribution.optimizers import optimizers_of
from keras_moe.distribution.torch_shards import sharded_banks

# The step for one element depends on the whole weight.
WHOLE_WEIGHT = (
    keras.optimizers.Adafactor,
    keras.optimizers.Lamb,
    keras.optimizers.Muon,
)
ELEMENTWISE = "SGD, Adam, AdamW, Lion, or RMSprop"


def check_optimizer(model: keras.Model, fully_sharded: bool) -> None:
    """Raise if the optimizer does not train as in one process.

    Args:
        model: Compiled model that was passed to `shard_experts`,
            `data_parallel`, or both.
        fully_sharded: Whether each process holds a part of every weight.

    Raises:
        ValueError: If the optimizer, or an option of it, depends on whole
            weights or gradients of which a process holds a part.
    """
    banks = bool(sharded_banks(model))
    for optimizer in optimizers_of(model):
        if banks or fully_sharded:
            _check_reads_elements(optimizer, fully_sharded)
        if banks:
            _check_no_norms(optimizer)
            _check_no_scaling(optimizer)


def _check_reads_elements(
    optimizer: keras.optimizers.Optimizer, fully_sharded: bool
) -> None:
    if not isinstance(optimizer, WHOLE_WEIGHT):
        return
    parted = "weights are fully" if fully_sharded else "experts are"
    raise ValueError(
        "`optimizer` must treat each element of a weight separately if "
        f"{parted} sharded, because a process holds only a part. Received: "
        f"{type(optimizer).__name__}, whose step depends on the whole weight. "
        f"Use {ELEMENTWISE}, or `data_parallel(model)` without sharding."
    )


def build_copies(model: keras.Model) -> None:
    """Build the optimizer if its slots start as copies of the weights.

    Args:
        model: Model that is not fully sharded yet. If it is not compiled,
            nothing is built.
    """
    if _copies_weights(model):
        model.optimizer.build(model.trainable_variables)


class CheckedCompile:
    """Compile a model with sharded weights, after a check of the optimizer.

    A check in the first step would be too late, because Keras builds the
    optimizer before it.

    Args:
        model: Fully sharded model.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.own = model.compile

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Compile, and raise if the optimizer would copy sharded weights."""
        self.own(*args, **kwargs)
        if _copies_weights(self.model):
            raise ValueError(
                "`optimizer` must be passed before data_parallel(model, "
                "fully_sharded=True) if its slots start as copies of the "
                "weights. Received: ScheduleFreeAdamW, compiled later. Call "
                "`model.compile` first."
            )


def _copies_weights(model: keras.Model) -> bool:
    """Return whether an optimizer will be built with copies of the weights."""
    return any(
        isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW)
        and not optimizer.built
        for optimizer in optimizers_of(model)
    )


def _check_no_norms(optimizer: keras.optimizers.Optimizer) -> None:
    for name in ("clipnorm", "global_clipnorm"):
        if getattr(optimizer, name, None) is not None:
            raise ValueError(
                f"`{name}` must be None if experts are sharded, because each "
                "process would clip by the norm of its own experts. Received: "
                f"{name}={getattr(optimizer, name)}. Use `clipvalue`."
            )


def _check_no_scaling(optimizer: keras.optimizers.Optimizer) -> None:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`optimizer` must not scale the loss if experts are sharded, "
            "because each process would skip steps by its own experts' "
            "gradients. Received: LossScaleOptimizer, which Keras adds for "
            "float16. Use the dtype policy 'mixed_bfloat16'."
        )


class CheckedStep:
    """Check the optimizer, then run a model's own `train_step`.

    The check runs before the first step, and again if the optimizer changes.

    Args:
        model: Model that was passed to `shard_experts` or `data_parallel`.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.own = model.train_step
        self.checked: object = None

    def __call__(self, data: Any) -> Any:
        """Train on one batch."""
        call = self.model.__dict__.get("call")
        key = getattr(self.model, "optimizer", None), call
        if key != self.checked:
            self.check(call)
            self.checked = key
        return self.own(data)

    def check(self, call: Any) -> None:
        """Raise unless all processes train together with this optimizer.

        Args:
            call: The `call` that replaces the model's own, or `None`.

        Raises:
            RuntimeError: If the model was not passed to `data_parallel`.
            ValueError: See `check_optimizer`.
        """
        if not hasattr(call, "fully_sharded"):
            raise RuntimeError(
                f"{self.model.name!r} must be trained by all processes "
                "together, because each holds a part of its experts. Received: "
                "a model that was only passed to `shard_experts`. Pass it to "
                "keras_moe.distribution.data_parallel, too."
            )
        check_optimizer(self.model, call.fully_sharded)


def install(model: keras.Model, fully_sharded: bool = False) -> None:
    """Make the model's training check the optimizer before the first step.

    Args:
        model: Model that was passed to `shard_experts` or `data_parallel`.
        fully_sharded: Whether each process holds a part of every weight.
            Default: `False`.
    """
    if fully_sharded:
        model.__dict__["compile"] = CheckedCompile(model)
    if not isinstance(model.__dict__.get("train_step"), CheckedStep):
        model.__dict__["train_step"] = CheckedStep(model)
