"""Compare blocks in `jax.shard_map`, with its defaults, with blocks outside.

Each device has its own rows, so the outputs are those of each part. The
gradient with respect to weights that all devices share is the sum over parts.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from keras_moe import MoEBlock, kernels

D = 8


def blocks():
    """Return blocks with a bank, with a four-bit bank, and with layers."""
    layers = [keras.layers.Dense(D, activation="tanh") for _ in range(3)]
    quantized = MoEBlock(4, 16)
    quantized.build((None, D))
    quantized.experts.quantize("int4")
    return {
        "bank": MoEBlock(4, 16, gated=True, use_bias=True),
        "quantized": quantized,
        "layers": MoEBlock(3, experts=layers),
    }


def difference(block, devices):
    """Return the largest difference from the parts' outputs and gradients."""
    x = np.random.default_rng(0).normal(size=(24, D)).astype("float32")
    block(x)
    weights = [v.value for v in block.trainable_variables]
    state = [v.value for v in block.non_trainable_variables]

    def outputs(weights, rows):
        return block.stateless_call(weights, state, rows, training=True)[0]

    def gradient(weights, rows):
        return jax.grad(lambda w: jnp.sum(outputs(w, rows) ** 2))(weights)

    def both(weights, rows):
        return outputs(weights, rows), gradient(weights, rows)

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    whole, sharded = PartitionSpec(), PartitionSpec("data")
    of_part = jax.jit(both)
    parts = [of_part(weights, part) for part in np.split(x, devices)]
    ys, gradients = zip(*parts, strict=True)
    expected = jnp.concatenate(ys), jax.tree.map(lambda *g: sum(g), *gradients)
    mapped = jax.shard_map(
        both,
        mesh=mesh,
        in_specs=(whole, sharded),
        out_specs=(sharded, whole),
    )
    found = jax.jit(mapped)(weights, x)
    differences = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))), found, expected
    )
    return max(jax.tree.leaves(differences))


def differences(devices=2):
    """Return the difference of each block, and of each formulation."""
    layers = blocks()
    bank = layers.pop("bank")
    found = {name: difference(block, devices) for name, block in layers.items()}
    for name in kernels.formulations():
        with kernels.use(name):
            found[name] = difference(bank, devices)
    return found
