"""Which optimizers train a model whose weights several processes divide.

`docs/optimizers-and-layouts.md` has the table, which a test writes.
"""

import keras

from keras_moe.distribution.optimizers import optimizers_of
from keras_moe.distribution.torch_shards import sharded_banks

# Their step for one element depends on the whole weight.
WHOLE_WEIGHT = (
    keras.optimizers.Adafactor,
    keras.optimizers.Lamb,
    keras.optimizers.Muon,
)
ELEMENTWISE = "SGD, Adam, AdamW, Lion, or RMSprop"


def check_optimizer(model: keras.Model, fully_sharded: bool) -> None:
    """Raise if the optimizer does not train a model as one process does.

    Args:
        model: Compiled. Of `shard_experts`, `data_parallel`, or both.
        fully_sharded: Whether each process holds a part of every weight.

    Raises:
        ValueError: If the optimizer, or an option of it, reads whole weights
            or gradients of which a process holds a part.
    """
    banks = bool(sharded_banks(model))
    for optimizer in optimizers_of(model):
        if banks or fully_sharded:
            _check_reads_elements(optimizer, fully_sharded)
        if banks:
            _check_no_norms(optimizer)
            _check_no_scaling(optimizer)


def _check_reads_elements(optimizer, fully_sharded):
    if not isinstance(optimizer, WHOLE_WEIGHT):
        return
    parted = "weights are fully" if fully_sharded else "experts are"
    raise ValueError(
        f"`optimizer` must treat each element of a weight by itself where "
        f"{parted} sharded: a process sees its part alone. Received: "
        f"{type(optimizer).__name__}, whose step depends on the whole weight. "
        f"Use {ELEMENTWISE}, or `data_parallel(model)` alone."
    )


def build_copies(model: keras.Model) -> None:
    """Build an optimizer whose slots start as copies of the weights.

    Args:
        model: Not fully sharded yet. Nothing happens if it is not compiled.
    """
    if _copies_weights(model):
        model.optimizer.build(model.trainable_variables)


class CheckedCompile:
    """The `compile` of a model whose weights are sharded by now.

    Keras builds the optimizer before the first step, where no check can be.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.own = model.compile

    def __call__(self, *args, **kwargs):
        """Compile, unless the optimizer would copy the weights."""
        self.own(*args, **kwargs)
        if _copies_weights(self.model):
            raise ValueError(
                "`optimizer` must be given before data_parallel(model, "
                "fully_sharded=True) if its slots start as copies of the "
                "weights. Received: ScheduleFreeAdamW, compiled after. Call "
                "`model.compile` first."
            )


def _copies_weights(model):
    """Whether slots will be copies; an optimizer that is built has them."""
    return any(
        isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW)
        and not optimizer.built
        for optimizer in optimizers_of(model)
    )


def _check_no_norms(optimizer):
    for name in ("clipnorm", "global_clipnorm"):
        if getattr(optimizer, name, None) is not None:
            raise ValueError(
                f"`{name}` must be None where experts are sharded: a process "
                "sees the norm of its own experts alone, and clips as no "
                f"other does. Received: {name}={getattr(optimizer, name)}. "
                "Use `clipvalue`."
            )


def _check_no_scaling(optimizer):
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`optimizer` must not scale the loss where experts are sharded: "
            "a process would skip a step by its own experts' gradients. "
            "Received: LossScaleOptimizer, which float16 brings along. Use "
            "the dtype policy 'mixed_bfloat16'."
        )


class CheckedStep:
    """A model's own `train_step`, after a check of the optimizer.

    The check runs before the first step, and again for another optimizer.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.own = model.train_step
        self.checked: object = None

    def __call__(self, data):
        """Train on one batch."""
        call = self.model.__dict__.get("call")
        key = getattr(self.model, "optimizer", None), call
        if key != self.checked:
            self.check(call)
            self.checked = key
        return self.own(data)

    def check(self, call) -> None:
        """Raise unless all processes train alike with this call."""
        if not hasattr(call, "fully_sharded"):
            raise RuntimeError(
                f"{self.model.name!r} must be trained by all processes "
                "together: its experts are in all of them. Received: a model "
                "from `shard_experts` alone. Pass it to "
                "keras_moe.distribution.data_parallel, too."
            )
        check_optimizer(self.model, call.fully_sharded)


def install(model: keras.Model, fully_sharded: bool = False) -> None:
    """Make the model's training check the optimizer before the first step.

    Args:
        model: Of `shard_experts` or `data_parallel`.
        fully_sharded: Whether each process holds a part of every weight.
    """
    if fully_sharded:
        model.__dict__["compile"] = CheckedCompile(model)
    if not isinstance(model.__dict__.get("train_step"), CheckedStep):
        model.__dict__["train_step"] = CheckedStep(model)
