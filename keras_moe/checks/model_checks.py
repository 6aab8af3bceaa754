"""Check the arguments of a mixture of models."""

from typing import Any

import keras
from keras import tree

from keras_moe import checks
from keras_moe.types import Tensor


def check_no_top_k(router: Any, top_k: int | None) -> None:
    """Raise if `top_k` differs from that of a given router."""
    if router is None or top_k in (None, getattr(router, "top_k", top_k)):
        return
    raise ValueError(
        "`top_k` must be left out if `router` is given: the router has its "
        f"own. Received: top_k={top_k}, router with top_k={router.top_k}. "
        "Set it on the router."
    )


def check_load_balancing(kind: str) -> str:
    """Return `kind` if it is not "per_sequence"; examples have no sequence."""
    if kind == "per_sequence":
        raise ValueError(
            "`load_balancing` must be 'switch' or 'global_batch' in a mixture "
            "of models, which routes whole examples. Received: load_balancing="
            "'per_sequence'. Pass 'global_batch' to balance the batches of all "
            "replicas together."
        )
    return kind


def only_mask(mask: Any) -> Tensor | None:
    """Return the mask of a single tensor.

    Raises:
        ValueError: If there is a mask, and it is one of several in a nest.
    """
    leaves = tree.flatten(mask)
    if all(leaf is None for leaf in leaves):
        return None
    if len(leaves) == 1:
        return leaves[0]
    raise ValueError(
        "`mask` must be the mask of a single tensor. Received: masks of a "
        f"nest, {mask}. Let each expert compute its own, for instance with "
        "Embedding(mask_zero=True) inside."
    )


def check_float_features(inputs: Tensor) -> None:
    """Raise if the inputs are not floats, which a router needs."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "float" not in dtype:
        raise ValueError(
            "`features` must be given if the inputs are not floats: a router "
            "cannot compute scores from token ids. Received: features=None, "
            f"inputs of dtype {dtype}. Pass, for instance, keras.Sequential("
            "[Embedding(words, width), GlobalAveragePooling1D()])."
        )


def check_features_shape(shape: Any, features: Any) -> None:
    """Raise if the inputs of the router are not one tensor `(B, ..., D)`."""
    if hasattr(shape, "keys") or shape[-1] is None or len(shape) < 2:
        raise ValueError(
            "`features` must be given if the inputs are not one tensor "
            "(B, ..., D) with a known D, and must return such a tensor, from "
            f"which the router chooses. Received: features={features}, of "
            f"shape {shape}. Pass a layer that ends in pooling."
        )


def check_features(features: Any) -> keras.layers.Layer | None:
    """Return `features` if it is None or a layer."""
    return checks.check_is_a(
        "features",
        features,
        (keras.layers.Layer, type(None)),
        "None or a Keras layer",
        "Pass a layer or model from the inputs to the inputs of the router.",
    )
