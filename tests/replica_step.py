"""What one replica computes in the replicas' tests."""

import numpy as np

from keras_moe import Router, losses


def routers():
    """Top-1 routers with a bias, whose logits are their inputs."""
    found = {}
    for name in ("even", "uneven"):
        router = Router(2, 1, expert_bias=True, expert_bias_step=0.5)
        router.build((None, 2))
        router.kernel.assign(np.eye(2))
        found[name] = router
    return found


def inputs(replica, even):
    """Tokens of one expert: the replica's own, or, uneven, mostly expert 0."""
    x = np.zeros((8, 2), "float32")
    x[:, replica] = 50
    if not even and replica:
        x[:4] = [50, 0]
    return x


def step(found, x_even, x_uneven):
    """Runs both routers in training; returns the first's losses by name."""
    a = found["even"](x_even, training=True)
    found["uneven"](x_uneven, training=True)
    return {
        name: losses.load_balancing_loss(
            a.router_probs,
            a.expert_index,
            over_replicas=name == "global_batch",
        )
        for name in ("switch", "global_batch")
    }
