"""What a mixture of models must be given; see `layer_checks.py`."""

import keras
from keras import tree

from keras_moe import checks
from keras_moe.types import Tensor


def check_no_top_k(router, top_k: int | None) -> None:
    """Raises where `top_k` is not the one that a given router has."""
    if router is None or top_k in (None, getattr(router, "top_k", top_k)):
        return
    raise ValueError(
        "`top_k` must be left out where `router` is given: the router brings "
        f"its own. Received: top_k={top_k}, router with top_k={router.top_k}. "
        "Set it on the router."
    )


def check_load_balancing(kind) -> str:
    """Return `kind` if it is a balance of examples."""
    if kind == "per_sequence":
        raise ValueError(
            "`load_balancing` must be 'switch' or 'global_batch' in a mixture "
            "of models, which routes whole examples. Received: load_balancing="
            "'per_sequence'. Pass 'global_batch' to balance the batches of all "
            "replicas together."
        )
    return kind


def only_mask(mask) -> Tensor | None:
    """Returns the mask of a single tensor; those of a nest are an error."""
    leaves = tree.flatten(mask)
    if all(leaf is None for leaf in leaves):
        return None
    if len(leaves) == 1:
        return leaves[0]
    raise ValueError(
        "`mask` must be that of a single tensor. Received: masks of a nest, "
        f"{mask}. Let each expert make its own, for instance with "
        "Embedding(mask_zero=True) inside."
    )


def check_float_features(inputs: Tensor) -> None:
    """Raises where the inputs are ids, which a router cannot weigh."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "float" not in dtype:
        raise ValueError(
            "`features` must be given where the inputs are no floats: numbers "
            "of words say nothing to a router. Received: features=None, inputs "
            f"of dtype {dtype}. Pass, for instance, keras.Sequential([Embedding"
            "(words, width), GlobalAveragePooling1D()])."
        )


def check_features_shape(shape, features) -> None:
    """Raises where what the router sees is not one tensor `(B, ..., D)`."""
    if hasattr(shape, "keys") or shape[-1] is None or len(shape) < 2:
        raise ValueError(
            "`features` must be given where the inputs are not one tensor "
            "(B, ..., D) of known D, and must give such a tensor: it is what "
            f"the router sees. Received: features={features}, of shape "
            f"{shape}. Pass a layer that ends in pooling."
        )


def check_features(features):
    """Return `features` if it is None or a layer."""
    return (
        features
        if features is None
        else checks.check_is_a(
            "features",
            features,
            keras.layers.Layer,
            "None or a Keras layer",
            "Pass a layer or model from the inputs to what the router sees.",
        )
    )
