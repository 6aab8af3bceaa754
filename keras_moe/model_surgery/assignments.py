"""Return where a model sends the tokens of a data set.

T tokens, E experts, P routed pairs.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe import checks, kernels
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.batches import BATCH_SIZE, batches_of
from keras_moe.model_surgery.find import (
    blocks_of,
    find_blocks,
    layers_of,
    paths_of,
)
from keras_moe.model_surgery.observe import calling, computing_once, own_call
from keras_moe.types import Assignment

# Errors of JAX and TensorFlow for a tensor taken out of a loop's body.
LEAKS = ("UnexpectedTracerError", "InaccessibleTensorError")


def routing_of(
    model: keras.Model, x: Any, batch_size: int = BATCH_SIZE
) -> dict[str, Assignment]:
    """Return where each mixture of a model sends the tokens of a data set.

    The model runs in batches and outside training, as in `predict`, and its
    state does not change.

    Args:
        model: Model or layer with at least one `MoEBlock` or
            `MixtureOfModels`. If it is not built yet, it is built.
        x: Inputs as `model.predict` takes them: an array `(N, ...)`, a list,
            tuple, or dict of arrays, or an iterable of batches such as a
            `tf.data.Dataset`, a `DataLoader`, or a `keras.utils.PyDataset`.
            Targets in its batches are ignored.
        batch_size: int. Examples per batch. Defaults to 32, as in `predict`.
            The choices of routers that compare the tokens of a batch
            (`ExpertChoiceRouter`, an `eval_capacity_factor`) depend on it. An
            iterable of batches keeps its own.

    Returns:
        A dict from the path of each mixture, in the order of
        `find_blocks(model)`, to its `Assignment` of NumPy arrays, after
        capacity. All of them count over the whole data set: `token_index` is
        int32 `(P,)` in 0 ... T - 1, `router_probs` is `(T, E)`, and
        `router_loss` is the mean over tokens. Token t of inputs
        `(N, S, D)` is at position `t % S` of example `t // S`, padding
        included. A `MixtureOfModels`, and a `MoEBlock(level="example")`, route
        examples: there t is the example.

        `expert_index == E` marks a pair that is not computed: of a padding
        token, or over capacity. If the model calls a block several times, the
        second call is under `path:1`, the third under `path:2`. If several
        blocks have the same path, the second is under `path_1`. A block has no
        entry if it is not called, or if its tokens are not those of the data
        set: if it is inside the experts of another mixture, or inside the cell
        of a `keras.layers.RNN`.

    Raises:
        ValueError: If the model has no mixture, or none with an entry; if a
            block is called inside a loop of JAX or TensorFlow, such as
            `jax.lax.scan`, or is recomputed by `keras.remat` (layers in a
            `keras.RematScope` are not recomputed here); if `x` holds
            no example; or if `batch_size` is not an integer above 0.

    Example:

    ```python
    inputs = keras.Input((10, 16))
    outputs = keras_moe.MoEBlock(4, 32, name="moe")(inputs)
    model = keras.Model(inputs, outputs)
    x = np.random.normal(size=(100, 10, 16))
    assignment = keras_moe.routing_of(model, x)["moe"]
    example = assignment.token_index // 10
    tokens_of_example_7 = assignment.expert_index[example == 7]
    ```
    """
    checks.check_positive_int("batch_size", batch_size)
    find_blocks(model)  # raises if there is none
    program, parts = None, []
    for batch in batches_of(x, batch_size):
        if program is None:
            blocks = _prepared_blocks(model, batch)
            program = kernels.compiled(_routed(model, blocks), model.variables)
        parts.append([_as_arrays(calls) for calls in _run(program, batch)])
    if program is None:
        raise ValueError(
            "`x` must hold at least one example. Received: no batch. Pass "
            "inputs as `model.predict` takes them."
        )
    return _named(model, blocks, parts)


def _prepared_blocks(model: keras.Model, batch: Any) -> list[Mixture]:
    """Return the mixtures to watch, all of them built.

    A block inside another mixture's experts gets the rows of these experts,
    and Keras runs a cell once too often on PyTorch: both are left out.
    """
    blocks = find_blocks(model)
    if not (model.built and all(block.built for block in blocks)):
        with computing_once(model):
            model(batch, training=False)
        blocks = find_blocks(model)
    hidden = [block.experts for block in blocks]
    cells = [rnn.cell for rnn in layers_of(model, keras.layers.RNN)]
    hidden += [x for x in cells if isinstance(x, keras.layers.Layer)]
    inner = {id(x) for layer in hidden for x in blocks_of(layer)}
    return [block for block in blocks if id(block) not in inner]


def _routed(
    model: keras.Model, blocks: list[Mixture]
) -> Callable[[Any], list[list[Assignment]]]:
    """Return a function from a batch to the assignments of each block."""

    def run(batch: Any) -> list[list[Assignment]]:
        seen: list[list[Assignment]] = [[] for _ in blocks]
        with contextlib.ExitStack() as stack:
            stack.enter_context(computing_once(model))
            for block, calls in zip(blocks, seen, strict=True):
                call = functools.partial(_call, block, calls)
                stack.enter_context(calling(block, call))
            model(batch, training=False)
        return seen

    return run


def _run(
    program: Callable[[Any], list[list[Assignment]]], batch: Any
) -> list[list[Assignment]]:
    try:
        return program(batch)
    except Exception as error:
        if type(error).__name__ not in LEAKS:
            raise
        raise ValueError(
            "`model` must not call its blocks inside a loop or a recomputation "
            "of the backend: what they return cannot be read from outside. "
            f"Received: {type(error).__name__}. Return the assignment of "
            "`block(..., return_assignment=True)` from the loop."
        ) from error


def _call(
    block: Mixture,
    calls: list[Assignment],
    *args: Any,
    return_assignment: bool = False,
    **kwargs: Any,
) -> Any:
    outputs, kept = own_call(block)(*args, return_assignment=True, **kwargs)
    calls.append(kept)
    return (outputs, kept) if return_assignment else outputs


def _as_arrays(calls: list[Assignment]) -> list[Assignment]:
    return [
        Assignment(*(np.asarray(ops.convert_to_numpy(x)) for x in call))
        for call in calls
    ]


def _named(
    model: keras.Model,
    blocks: list[Mixture],
    parts: list[list[list[Assignment]]],
) -> dict[str, Assignment]:
    """Return the assignments of all batches as one, by path and call."""
    routing = {}
    for path, calls in zip(
        paths_of(blocks), zip(*parts, strict=True), strict=True
    ):
        for number, call in enumerate(zip(*calls, strict=True)):
            name = f"{path}:{number}" if number else path
            routing[name] = _joined(call)
    if not routing:
        raise ValueError(
            "`model` must call a mixture that is not inside another mixture's "
            f"experts or an RNN's cell. Received: model {model.name!r} with "
            f"{paths_of(find_blocks(model))}. Call the block itself on its "
            "inputs, with `return_assignment=True`."
        )
    return routing


def _joined(parts: Sequence[Assignment]) -> Assignment:
    """Return the assignments of consecutive batches as one.

    The indices of tokens continue from one batch to the next.
    """
    sizes = [len(part.router_probs) for part in parts]
    starts = np.cumsum([0, *sizes[:-1]])
    moved = [
        part._replace(token_index=part.token_index + np.int32(start))
        for part, start in zip(parts, starts, strict=True)
    ]
    *fields, losses = zip(*moved, strict=True)
    loss = np.average(np.stack(losses), weights=sizes).astype("float32")
    return Assignment._make([*map(np.concatenate, fields), loss])
