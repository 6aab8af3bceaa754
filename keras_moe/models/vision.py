"""A classifier of images.

B batch, H height, W width, C channels, S patches, D hidden_dim.
"""

import math
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_moe import checks
from keras_moe.layers import BaseRouter, quantization
from keras_moe.models import embedding_layers
from keras_moe.models.moe_model import MoEModel
from keras_moe.models.transformer_blocks import Blocks
from keras_moe.types import Activation, Shape


@keras.saving.register_keras_serializable(package="keras_moe")
class MoEVisionClassifier(MoEModel):
    """Classify images `(B, H, W, C)` as logits float32 `(B, num_classes)`.

    The tokens are patches of the image with learned positions. They pass
    through pre-norm encoder blocks, and the mean over them is classified.

    Reference: Dosovitskiy et al. 2020 (ViT), eq. 1-4, with the mean in place
    of a class token; with experts, Riquelme et al. 2021 (V-MoE).

    Args:
        image_shape: Tuple `(H, W, C)` of positive ints.
        patch_size: Positive int. Side of a patch, a divisor of H and W.
        num_classes: Positive int. Number of classes.
        num_layers: Positive int. Number of transformer blocks.
        hidden_dim: Positive int. D, the width of the model, a multiple of
            `num_heads`.
        num_heads: Positive int. Number of heads of each attention layer.
        intermediate_dim: Positive int. F, the inner width of each expert.
        num_experts: Positive int or None. E, the number of experts of each MoE
            block. `None` builds the dense twin, which `Blocks` describes.
        top_k: Positive int. K, the number of experts per token. Defaults to 2.
            Ignored if `router` is passed, which has its own.
        moe_every: int in 1 ... `num_layers`. Every n-th block is an MoE block
            and the others are dense. Defaults to 1: all are MoE blocks.
        num_key_value_heads: Divisor of `num_heads`, or None. Number of heads of
            keys and values (grouped-query attention). `None` (the default)
            means `num_heads`.
        dropout: float in 0 <= rate < 1. Dropout rate of the output of each part
            of a block. Defaults to 0.
        activation: str, function, or None. Activation of the experts. Defaults
            to `"gelu"`. `None` means a linear expert.
        gated: bool. Whether the experts have a gate, as in SwiGLU. Defaults
            to `False`.
        capacity_factor: float above 0, or None. Limits the tokens per expert
            in training. `None` (the default) never drops tokens.
        shared_expert_dim: Positive int or None. Width of one more expert that
            every token uses. `None` (the default) adds none.
        router: A router, of which each block gets a copy with weights of its
            own. `None` (the default) means `Router(num_experts, top_k)`.
        load_balancing_weight: float of 0 or above, learning rate schedule, or
            None. Weight of the load-balancing loss. `None` (the default) means
            the router's default.
        positions: str. `"learned"` (the default), the only choice for images,
            adds a learned vector to each patch.
        seed: int or None. Seed of dropout, jitter, and other random draws in
            training. `None` (the default) draws one. The initial weights follow
            `keras.utils.set_random_seed`.
        name: str or None. Name of the model. `None` (the default) derives it
            from the class name.
        dtype: dtype policy of every layer, or None. `None` (the default) means
            Keras's global policy.
        trainable: bool. Whether training updates the weights. Defaults to
            `True`.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range, or
            if `patch_size` does not divide the height and the width.

    Example:

    ```python
    model = keras_moe.models.MoEVisionClassifier(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_classes=3,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_experts=4,
    )
    logits = model(keras.random.uniform((2, 8, 8, 3)))
    ```
    """

    def __init__(
        self,
        image_shape: Shape,
        patch_size: int,
        num_classes: int,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        *,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        num_experts: int | None,
        top_k: int = 2,
        moe_every: int = 1,
        num_key_value_heads: int | None = None,
        dropout: float = 0.0,
        activation: str | Activation | None = "gelu",
        gated: bool = False,
        capacity_factor: float | None = None,
        shared_expert_dim: int | None = None,
        router: BaseRouter | None = None,
        load_balancing_weight: float | LearningRateSchedule | None = None,
        positions: str = "learned",
        seed: int | None = None,
    ):
        num_classes = checks.check_positive_int("num_classes", num_classes)
        image_shape, patch_size = check_patches(image_shape, patch_size)
        checks.check_choice("positions", positions, ("learned",))
        num_patches = math.prod(n // patch_size for n in image_shape[:2])
        built = Blocks.from_arguments(locals())
        images = keras.Input(tuple(image_shape), name="images")
        x = keras.layers.Conv2D(
            built.hidden_dim,
            patch_size,
            strides=patch_size,
            name="patches",
            dtype=built.dtype,
        )(images)
        x = keras.layers.Reshape(
            (num_patches, built.hidden_dim), name="tokens", dtype=built.dtype
        )(x)
        x = embedding_layers.PositionEmbedding(
            num_patches, name="positions", dtype=built.dtype
        )(x)
        for block in built.encoder():
            x = block(x)
        x = embedding_layers.final_norm(built.dtype)(x)
        x = embedding_layers.MeanPooling(name="pooling", dtype=built.dtype)(x)
        head = keras.layers.Dense(
            num_classes, name="head", dtype=quantization.float32_head(dtype)
        )
        arguments = {
            "image_shape": list(image_shape),
            "patch_size": patch_size,
            "num_classes": num_classes,
            **built.arguments,
        }
        super().__init__(images, head(x), arguments, name, dtype, trainable)


def check_patches(
    image_shape: Any, patch_size: Any
) -> tuple[tuple[int, ...], int]:
    """Return both arguments if images can be cut into whole patches."""
    patch_size = checks.check_positive_int("patch_size", patch_size)
    shape = checks.check_list("image_shape", image_shape, "three integers")
    if len(shape) == 3:
        sizes = [checks.check_positive_int("image_shape", n) for n in shape]
        if not any(side % patch_size for side in sizes[:2]):
            return tuple(sizes), patch_size
    raise ValueError(
        "`image_shape` must be (height, width, channels), height and width "
        f"multiples of `patch_size`. Received: image_shape={image_shape}, "
        f"patch_size={patch_size}. Resize the images or change `patch_size`."
    )
