"""PyTorch: calls without Keras's overhead, and Adam's step."""

from collections.abc import Callable, Sequence

import keras
import torch
from torch.optim.adam import adam

from keras_moe._keras import remat_mode_of
from keras_moe._torch import has_hooks
from keras_moe.types import Tensor

ENDLESS = 1e9  # steps, after which no beta below 1 - 1e-7 leaves a bias


def needs_a_full_call(
    owner: keras.layers.Layer, layer: keras.layers.Layer
) -> bool:
    """Return whether Keras or PyTorch would do more than `call`.

    They do for hooks, another dtype, regularized outputs, and quantized or
    recomputed layers.
    """
    if owner.dtype_policy is layer.dtype_policy:
        dtypes = {layer.compute_dtype, layer.variable_dtype}
    else:
        dtypes = {
            owner.compute_dtype,
            owner.variable_dtype,
            layer.compute_dtype,
            layer.variable_dtype,
        }
    return bool(
        len(dtypes) > 1
        or not layer.built
        or layer.activity_regularizer is not None
        or layer.quantization_mode is not None
        or remat_mode_of(layer) is not None
        or has_hooks(layer)
    )


def adam_step(
    variable: keras.Variable,
    gradient: Tensor,
    slots: Sequence[keras.Variable],
    step_size: Callable[[], Tensor],
    betas: tuple[float, float],
    epsilon: float,
) -> bool:
    """Use the fused function of `torch.optim`.

    That function corrects the bias itself, and adds epsilon to the corrected
    root. With a huge number of steps there is nothing left to correct, so that
    it computes Keras's step.
    """
    tensors = [variable.value, gradient, *(slot.value for slot in slots)]
    plain = all(
        type(t) in (torch.Tensor, torch.nn.Parameter)
        and t.dtype == torch.float32
        for t in tensors
    )
    if not plain:
        return False
    steps = torch.full((), ENDLESS, device=gradient.device)
    weights, gradients, *moments = ([t] for t in tensors)
    first, second, largest = [*moments, []][:3]
    with torch.no_grad():
        adam(
            weights,
            gradients,
            first,
            second,
            largest,
            [steps],
            fused=True,
            amsgrad=bool(largest),
            beta1=betas[0],
            beta2=betas[1],
            lr=step_size(),
            weight_decay=0.0,
            eps=epsilon,
            maximize=False,
        )
    return True
