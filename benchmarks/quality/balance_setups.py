"""The ways of balancing that `balance.py` compares, and its small model.

B images, S patches of an image, C pixels of a patch, D hidden_dim, F
intermediate_dim, E experts, K top_k.
"""

from typing import NamedTuple

import keras
from keras import layers, ops

import keras_moe

SETTINGS = {
    "num_classes": 10,
    "num_experts": 8,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "num_blocks": 1,
    "learning_rate": 4e-3,
    "batch_size": 64,
    "test_batch_size": 256,
    "position_std": 0.3,
    "shared_std": 0.5,
    "router_kernel_std": 0.3,
    "load_balancing_weight": 0.3,
    "noisy_weight": 0.3,
    "expert_bias_step": 0.01,
    "l1_start": 1e-3,
}


class Way(NamedTuple):
    """A router and what it is told; one of a kind is trained once a seed.

    router: name of a class of `keras_moe`.
    arguments, block: of the router and of its block, as pairs.
    """

    router: str
    arguments: tuple = ()
    block: tuple = ()

    @property
    def needs_ids(self):
        """Whether the router needs ids."""
        return self.router == "HashRouter"


def _way(router, block=None, **arguments):
    return Way(router, tuple(arguments.items()), tuple((block or {}).items()))


def _weight(weight, **others):
    return {"load_balancing_weight": weight, **others}


def compared():
    """Returns each row's name, its way, and the same without balancing."""
    on = _weight(SETTINGS["load_balancing_weight"])
    off = _weight(0.0)
    best = {"top_k": 1, "normalize_weights": False}
    plain = _way("Router", off, **best)
    rows = {
        f"Router, {kind}": (
            _way("Router", {**on, "load_balancing": kind}, **best),
            plain,
        )
        for kind in keras_moe.losses.LOAD_BALANCING
    }
    step = SETTINGS["expert_bias_step"]
    biased = _way("Router", expert_bias=True, expert_bias_step=step, **best)
    rows["Router, expert_bias"] = biased, plain
    rows["SwitchRouter"] = _pair("SwitchRouter", on, off)
    rows["CosineRouter"] = _pair("CosineRouter", on, off, **best)
    rows["AttentionRouter"] = _pair("AttentionRouter", on, off, **best)
    rows["SinkhornRouter"] = _way("SinkhornRouter"), plain
    rows["HashRouter, hash"] = _way("HashRouter"), plain
    rows["HashRouter, modulo"] = _way("HashRouter", method="modulo"), plain
    noisy = SETTINGS["noisy_weight"]
    rows["NoisyTopKRouter"] = (
        _way("NoisyTopKRouter", importance_weight=noisy, load_weight=noisy),
        _way("NoisyTopKRouter", importance_weight=0.0, load_weight=0.0),
    )
    rows["GShardRouter"] = _pair("GShardRouter", on, off)
    rows["ExpertChoiceRouter"] = (
        _way("ExpertChoiceRouter", bidirectional=True),
        _way("Router", off, top_k=2),
    )
    rows["ReLURouter"] = (
        _way("ReLURouter", l1_start=SETTINGS["l1_start"]),
        _way("ReLURouter", l1_start=1e-30, l1_growth=1.0001),
    )
    rows["TopPRouter"] = (
        _way("TopPRouter", on),
        _way("TopPRouter", off, entropy_weight=0.0),
    )
    return rows


def _pair(router, on, off, **arguments):
    return _way(router, on, **arguments), _way(router, off, **arguments)


class Positions(layers.Layer):
    """Adds a learned vector to each place of a sequence."""

    def build(self, input_shape):
        """Creates the vectors `(S, D)`."""
        self.vectors = self.add_weight(
            shape=input_shape[1:],
            initializer=keras.initializers.RandomNormal(
                stddev=SETTINGS["position_std"]
            ),
            name="vectors",
        )

    def call(self, inputs):
        """Returns `(B, S, D)`."""
        return ops.add(inputs, self.vectors)


def build(way, tokens_shape, seed):
    """Returns a classifier, and a model of its blocks' expert indices.

    Patches `(B, S, C)` and ids `(B, S)` go through an embedding, MoE blocks
    with residual connections, the mean over S, and a Dense layer.
    """
    tokens = keras.Input(tokens_shape)
    ids = keras.Input(tokens_shape[:1], dtype="int32")
    x = Positions()(_embedding()(tokens))
    indices = []
    for i in range(SETTINGS["num_blocks"]):
        change, assignment = _block(way, seed * SETTINGS["num_blocks"] + i)(
            layers.RMSNormalization()(x),
            return_assignment=True,
            **({"router_inputs": ids} if way.needs_ids else {}),
        )
        x = layers.Add()([x, change])
        indices.append(assignment.expert_index)
    x = layers.GlobalAveragePooling1D()(x)
    logits = layers.Dense(SETTINGS["num_classes"])(x)
    inputs = [tokens, ids]
    return keras.Model(inputs, logits), keras.Model(inputs, indices)


def _embedding():
    """A Dense layer whose bias is a direction that all tokens share."""
    shared = keras.initializers.RandomNormal(stddev=SETTINGS["shared_std"])
    return layers.Dense(SETTINGS["hidden_dim"], bias_initializer=shared)


def _block(way, seed):
    arguments = dict(way.arguments)
    if not way.needs_ids:
        arguments["kernel_initializer"] = keras.initializers.RandomNormal(
            stddev=SETTINGS["router_kernel_std"], seed=seed
        )
    router_class = getattr(keras_moe, way.router)
    return keras_moe.MoEBlock(
        SETTINGS["num_experts"],
        SETTINGS["intermediate_dim"],
        router=router_class(SETTINGS["num_experts"], seed=seed, **arguments),
        **dict(way.block),
    )
