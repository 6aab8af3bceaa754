"""Running means of expert load and dropped pairs in training.

E experts, P routed pairs.
"""

from typing import Any

import keras

from keras_moe import kernels
from keras_moe.kernels import light_ops as ops
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Shape, Tensor


class RoutingStatistics(KeptInFloats, MoELayer):
    """Holds a block's expert load and dropped share as weights.

    A `keras.metrics.Metric` that is updated inside `call` fails on JAX, and
    FSDP rejects scalars. So the statistics are non-trainable float32 weights of
    rank 1, means over the training batches since the last `reset()`.

    Args:
        num_experts: Int, E.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights: `expert_load` `(E,)`, share of the pairs that chose each expert,
    before capacity; `fraction_dropped` `(1,)`, share of the pairs that
    capacity dropped; `num_batches` `(1,)`, number of counted batches.
    """

    def __init__(self, num_experts: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_experts = num_experts

    def build(self, input_shape: Shape | None = None) -> None:
        """Create the weights; the shape of the inputs does not matter."""
        self.expert_load = self._add_mean("expert_load", self.num_experts)
        self.fraction_dropped = self._add_mean("fraction_dropped", 1)
        self.num_batches = self._add_mean("num_batches", 1)

    def _add_mean(self, name: str, size: int) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(size,),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="mean",
        )

    def update(self, chosen_index: Tensor, kept_index: Tensor) -> None:
        """Count a batch unless nothing was routed or the layer is frozen.

        Args:
            chosen_index: Int32 tensor of shape `(P,)`, the expert of each pair
                as the router chose it.
            kept_index: Int32 tensor of shape `(P,)`, the same after capacity.
        """
        if not self.trainable or kernels.is_recomputing():
            return
        load, dropped = self._shares(chosen_index, kept_index)
        counted = ops.cast(ops.sum(load, keepdims=True) > 0, "float32")
        num_batches = self.num_batches.value + counted
        step = counted / (num_batches + (1.0 - counted))
        self._move(self.expert_load, load, step)
        self._move(self.fraction_dropped, dropped, step)
        self.write(self.num_batches, num_batches)

    def _shares(
        self, chosen_index: Tensor, kept_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return load `(E,)` and dropped share `(1,)` over all replicas."""
        numbers = [kernels.group_sizes_of(chosen_index, self.num_experts)]
        if kept_index is not chosen_index:
            numbers.append(kernels.group_sizes_of(kept_index, self.num_experts))
        counts = ops.cast(ops.stack(numbers), "float32")
        counts = kernels.sum_over_replicas(counts)
        pairs = ops.sum(counts, axis=-1)
        chosen, kept = pairs[:1], pairs[-1:]
        routed = chosen + ops.cast(chosen <= 0, "float32")
        return counts[0] / routed, (chosen - kept) / routed

    def _move(self, mean: keras.Variable, value: Tensor, step: Tensor) -> None:
        self.write(mean, mean.value + step * (value - mean.value))

    def reset(self) -> None:
        """Reset the means to zero."""
        for mean in (self.expert_load, self.fraction_dropped, self.num_batches):
            mean.assign(ops.zeros(mean.shape))
