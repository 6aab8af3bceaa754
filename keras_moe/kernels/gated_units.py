"""Activations of gated experts that are functions of gate and up.

F is the inner width.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.types import GatedUnit, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
@dataclasses.dataclass(frozen=True)
class ClippedSwiGLU(GatedUnit):
    """Computes SwiGLU of a gate and an up that are clipped.

    The hidden units are

    ```
    g * sigmoid(alpha * g) * (u + up_offset)
    with g = min(gate, limit) and u = clip(up, -limit, limit)
    ```

    so that no hidden unit grows without bound in half precision. The gradient
    is zero where a value is clipped.

    | model | unit |
    |---|---|
    | GPT-OSS, MiniMax-M3 | `ClippedSwiGLU()` |
    | DeepSeek-V4, GLM-5 | `ClippedSwiGLU(10.0, alpha=1.0, up_offset=0.0)` |

    Args:
        limit: Float above 0. Upper bound of gate, and of the absolute value of
            up. 7 by default, as in GPT-OSS; DeepSeek-V4 has 10.
        alpha: Float above 0. Slope in the sigmoid. 1.702 by default, with which
            `g * sigmoid(alpha * g)` approximates GELU (Hendrycks and Gimpel
            2016, "Gaussian Error Linear Units", section 2); 1 is SiLU.
        up_offset: Float. Added to the clipped up. 1 by default, as in GPT-OSS,
            so that an expert whose up is zero still passes on its gate; 0 is
            the product of SwiGLU.

    Call arguments:
        gate, up: Float tensors of the same shape `(..., F)`.

    Returns:
        Tensor of this shape.

    Raises:
        ValueError: If an argument is not a finite number, or if `limit` or
            `alpha` is not above 0.

    Reference: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", section
    2.2; SwiGLU is that of Shazeer 2020, "GLU Variants Improve Transformer",
    eq. 6.

    Example:

    ```python
    block = keras_moe.MoEBlock(
        num_experts=4,
        intermediate_dim=32,
        activation=keras_moe.ClippedSwiGLU(),
        gated=True,
    )
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    limit: float = 7.0
    alpha: float = 1.702
    up_offset: float = 1.0

    def __post_init__(self) -> None:
        infinity = checks.INFINITY
        lows = {"limit": 0.0, "alpha": 0.0, "up_offset": -infinity}
        for name, low in lows.items():
            value = checks.check_above(name, getattr(self, name), low, infinity)
            object.__setattr__(self, name, float(value))

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return the hidden units; see the class.

        `where` has the gradient 1 at the limit on every backend, which
        `minimum` has not.
        """
        limit = self.limit
        gate = ops.where(gate > limit, limit, gate)
        up = ops.where(up > limit, limit, up)
        up = ops.where(up < -limit, -limit, up)
        return gate * ops.sigmoid(self.alpha * gate) * (up + self.up_offset)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this unit again."""
        return dataclasses.asdict(self)
