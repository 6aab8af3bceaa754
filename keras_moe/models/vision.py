"""A classifier of images.

B batch, H height, W width, C channels, S patches, D hidden_dim.
"""

import math
from typing import Any

import keras

from keras_moe import checks
from keras_moe.layers import quantization
from keras_moe.models import parts
from keras_moe.models.base import MoEModel
from keras_moe.models.blocks import blocks_of
from keras_moe.types import Shape


@keras.saving.register_keras_serializable(package="keras_moe")
class MoEVisionClassifier(MoEModel):
    """Images `(B, H, W, C)` to logits float32 `(B, num_classes)`.

    Patches as tokens, learned positions, pre-norm encoder blocks, the mean
    over the patches (ViT: Dosovitskiy et al. 2020, eq. 1-4, with the mean in
    place of a class token; with experts, V-MoE: Riquelme et al. 2021).

    Args:
        image_shape: `(H, W, C)`.
        patch_size: side of a patch, a divisor of H and W.
        num_classes: of the logits.
        **blocks: `num_layers, hidden_dim, num_heads, intermediate_dim,
            num_experts` and what else `Blocks` takes, but for `positions`;
            and `name`, `dtype` and `trainable`.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        image_shape: Shape,
        patch_size: int,
        num_classes: int,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        **blocks,
    ):
        num_classes = checks.check_positive_int("num_classes", num_classes)
        image_shape, patch_size = check_patches(image_shape, patch_size)
        num_patches = math.prod(n // patch_size for n in image_shape[:2])
        built = blocks_of(self, dtype, _with_positions(blocks))
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
        x = parts.PositionEmbedding(
            num_patches, name="positions", dtype=built.dtype
        )(x)
        for block in built.encoder():
            x = block(x)
        x = parts.final_norm(built.dtype)(x)
        x = parts.MeanPooling(name="pooling", dtype=built.dtype)(x)
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


def _with_positions(blocks):
    """Return the arguments of the blocks with learned positions."""
    given = blocks.get("positions", "learned")
    checks.check_choice("positions", given, ("learned",))
    return {**blocks, "positions": "learned"}
