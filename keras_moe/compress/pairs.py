"""Pair the layers of a student with those of a teacher.

D hidden_dim, E experts, T tokens.
"""

from typing import Any

import keras

from keras_moe import _keras, checks
from keras_moe.model_surgery.find import find_blocks
from keras_moe.model_surgery.observe import Call
from keras_moe.types import Tensor

Pair = tuple[keras.layers.Layer, keras.layers.Layer]


def check_models(student: Any, teacher: Any) -> None:
    """Raise if one of the two is no built model, or if both are the same."""
    for name, model in (("student", student), ("teacher", teacher)):
        if not (isinstance(model, keras.Model) and model.built):
            raise ValueError(
                f"`{name}` must be a built Keras model. Received: {name}="
                f"{model!r}. Give it an Input, or call it once."
            )
    if student is teacher:
        raise ValueError(
            "`teacher` must not be the student. Received: "
            f"{teacher.name!r} twice. Build another model as the student."
        )


def check_hidden(hidden: Any) -> Any:
    """Return `hidden` if it is None, a list of names, or a dict."""
    if hidden is None or isinstance(hidden, dict):
        return hidden
    return checks.check_list("hidden", hidden, "layers' names")


def check_router(router: Any) -> bool | dict[str, str]:
    """Return `router` if it is a bool or a dict."""
    if isinstance(router, dict):
        return router
    return checks.check_bool("router", router)


def hidden_pairs(
    student: keras.Model, teacher: keras.Model, hidden: Any
) -> list[Pair]:
    """Return the layers whose outputs are to match.

    Args:
        student: Built model.
        teacher: Built model.
        hidden: None, a list of names that both models have, or a dict from the
            student's names to the teacher's.
    """
    names = {} if hidden is None else hidden
    if not isinstance(names, dict):
        names = {name: name for name in names}
    return [
        (_layer(student, own), _layer(teacher, other))
        for own, other in names.items()
    ]


def router_pairs(
    student: keras.Model, teacher: keras.Model, router: Any
) -> list[Pair]:
    """Return the routers whose probabilities are to match.

    Args:
        student: Built model.
        teacher: Built model.
        router: False, True for all blocks in order, or a dict from the names
            of the student's blocks to the teacher's.

    Raises:
        ValueError: If a block is not found, or if two blocks of a pair have
            different numbers of experts.
    """
    if not router:
        return []
    found: Any = (find_blocks(student), find_blocks(teacher))
    if isinstance(router, dict):
        blocks = hidden_pairs(student, teacher, router)
        found = tuple(zip(*blocks, strict=True))
    experts = [[getattr(b, "num_experts", 0) for b in side] for side in found]
    if experts[0] != experts[1] or 0 in experts[0]:
        raise ValueError(
            "`router` must pair blocks with the same number of experts. "
            f"Received: {experts[0]} experts in the student's blocks, "
            f"{experts[1]} in the teacher's. Pass a dict from the student's "
            "blocks to the teacher's, or router=False."
        )
    return [(a.router, b.router) for a, b in zip(*found, strict=True)]


def _layer(model: keras.Model, name: str) -> keras.layers.Layer:
    """Return the one layer with a name, a path, or the end of a path."""
    layers = _keras.layers_inside(model)
    found = [
        x for x in layers if name in (x.name, x.path) or _ends(x.path, name)
    ]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        "`hidden` and `router` must name one layer of each model. Received: "
        f"{name!r}, the name of {len(found)} layers in {model.name!r}. Name "
        "the layer when building the model, or pass the end of its path, such "
        "as 'block_1/moe'."
    )


def _ends(path: str | None, name: str) -> bool:
    return path is not None and path.endswith(f"/{name}")


def projection(
    own: keras.layers.Layer, other: keras.layers.Layer, number: int
) -> keras.layers.Dense | None:
    """Return a linear map from one layer's width to the other's.

    Args:
        own: Layer of the student.
        other: Layer of the teacher.
        number: int. Number of the pair, for the name.

    Returns:
        A built `Dense`, or None if the widths are equal.
    """
    widths = _width(own), _width(other)
    if widths[0] == widths[1]:
        return None
    layer = keras.layers.Dense(
        widths[1], use_bias=False, dtype="float32", name=f"projection_{number}"
    )
    layer.build((None, widths[0]))
    return layer


def _width(layer: keras.layers.Layer) -> int:
    """Return the width of a layer's outputs."""
    width: int
    try:
        width = keras.tree.flatten(layer.output)[0].shape[-1]
        return width
    except (AttributeError, ValueError):
        pass
    try:
        shape = (layer.get_build_config() or {}).get("input_shape")
        width = layer.compute_output_shape(shape)[-1]
        return width
    except Exception as error:
        raise ValueError(
            "`hidden` must name layers whose output shape is known. Received: "
            f"{layer.path!r} of {type(layer).__name__}. Name a layer of a "
            "Functional model."
        ) from error


def only_call(seen: dict[int, list[Call]], layer: keras.layers.Layer) -> Call:
    """Return the one call of a layer in a pass of its model."""
    calls = seen[id(layer)]
    if len(calls) == 1:
        return calls[0]
    raise ValueError(
        "`hidden` and `router` must name layers that their model calls once. "
        f"Received: {layer.path!r}, called {len(calls)} times. Name another."
    )


def only_states(
    seen: dict[int, list[Call]], layer: keras.layers.Layer
) -> Tensor:
    """Return the first output of the one call of a layer."""
    return keras.tree.flatten(only_call(seen, layer).outputs)[0]


def check_states(states: Tensor, targets: Tensor, layer: Any) -> None:
    """Raise if hidden states have different shapes."""
    if tuple(states.shape) == tuple(targets.shape):
        return
    raise ValueError(
        "`hidden` must pair layers whose outputs differ only in width. "
        f"Received: {tuple(states.shape)} of {layer.path!r}, "
        f"{tuple(targets.shape)} of the teacher's. Pair other layers."
    )


def check_outputs(targets: Any, outputs: Any) -> None:
    """Raise if outputs are not one `(..., C)` each, of the same C above 1."""
    shapes = [tuple(getattr(x, "shape", ())) for x in (targets, outputs)]
    if shapes[0] == shapes[1] and shapes[0] and shapes[0][-1] not in (None, 1):
        return
    raise ValueError(
        "`student` and `teacher` must each have one output of shape (..., C), "
        "with the same number of classes, two or more. Received: "
        f"{keras.tree.map_structure(lambda t: t.shape, outputs)} of the "
        f"student, {keras.tree.map_structure(lambda t: t.shape, targets)} of "
        "the teacher. Give a yes-or-no classifier two outputs, or pass alpha=0 "
        "and `hidden`."
    )


def check_no_labels(alpha: float, y: Any, loss: Any) -> None:
    """Raise if `alpha` needs the labels or the loss that are missing."""
    if alpha == 1:
        return
    raise ValueError(
        "`alpha` must be 1 if there are no labels or no compiled loss. "
        f"Received: alpha={alpha}, labels: {y is not None}, a compiled loss: "
        f"{loss is not None}. Pass `loss` to compile and labels to fit, or "
        "alpha=1."
    )
