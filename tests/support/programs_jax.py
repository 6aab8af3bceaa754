"""Count the collectives in the programs that XLA compiles for a mesh."""

import re

import jax
import keras
import numpy as np

import keras_moe
from keras_moe.distribution import expert_parallel
from keras_moe.kernels.jax import exchange

D, E = 8, 8

COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) (?P<name>all-to-all|all-gather|all-reduce|"
    r"reduce-scatter|collective-permute)(-start)?\("
)
TENSOR = re.compile(r"(f32|s32|bf16|pred|u32)\[([\d,]*)\]")


def collectives(text):
    """Return each collective of a compiled program: name, dtype, elements."""
    found = []
    for match in COLLECTIVE.finditer(text):
        sizes = [
            int(np.prod([int(n) for n in dims.split(",") if n]))
            for kind, dims in TENSOR.findall(match["shape"])
        ]
        kinds = {kind for kind, _ in TENSOR.findall(match["shape"])}
        found.append([match["name"], sorted(kinds)[0], sum(sizes)])
    return found


PROGRAMS = (  # E, capacity factor, training
    (8, 1.0, False),
    (64, 1.0, False),
    (64, 1.0, True),
    (64, None, False),
    (64, None, True),
)


def programs(which):
    """Return the collectives of a block's programs."""
    found = {}
    for experts, factor, training in which:
        block = keras_moe.MoEBlock(
            experts, 24, capacity_factor=factor, eval_capacity_factor=factor
        )
        with expert_parallel().scope():
            block.build((512, 16))
            found[f"{experts}, {factor}, {training}"] = collectives(
                compiled_text(block, np.zeros((512, 16), "float32"), training)
            )
    return found


def compiled_text(block, x, training):
    """Return the program of a call, or of a step's gradients."""
    trainable = [v.value for v in block.trainable_variables]
    others = [v.value for v in block.non_trainable_variables]
    layout = keras.distribution.distribution().get_data_layout(x.shape)
    x = jax.device_put(x, layout.backend_layout)

    def call(trainable, others, x):
        y, _, losses = block.stateless_call(
            trainable, others, x, training=training, return_losses=True
        )
        return y if not training else (y**2).sum() + sum(losses)

    run = jax.jit(jax.grad(call, (0, 2)) if training else call)
    return run.lower(trainable, others, x).compile().as_text()


def ragged():
    """Return how often a program for TPUs sends rows without padding.

    The program is compiled but not run, because it needs a TPU.
    """
    exchange.is_ragged = lambda mesh: True
    block = keras_moe.MoEBlock(E, 8)
    with expert_parallel().scope():
        block.build((64, D))
        run = jax.jit(
            lambda x: block.stateless_call(
                [v.value for v in block.trainable_variables],
                [v.value for v in block.non_trainable_variables],
                x,
            )[0]
        )
        lowered = run.trace(np.zeros((64, D), "float32")).lower(
            lowering_platforms=("tpu",)
        )
    return lowered.as_text().count("@ragged_all_to_all")
