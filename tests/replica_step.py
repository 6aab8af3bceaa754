"""What one replica computes in the replicas' tests."""

import keras
import numpy as np

from keras_moe import MixtureOfModels, Router, kernels, losses, routing

PADDED_LENGTH, PADDED_WIDTH, PADDED_EXPERTS = 6, 3, 4


def routers():
    """Top-1 routers with a bias, whose logits are their inputs."""
    found = {}
    for name in ("even", "uneven"):
        router = Router(2, 1, expert_bias=True, expert_bias_step=0.5)
        router.build((None, 2))
        router.kernel.assign(np.eye(2))
        found[name] = router
    return {**found, "mixture": mixture()}


def inputs(replica, even):
    """Tokens of one expert: the replica's own, or, uneven, mostly expert 0."""
    x = np.zeros((8, 2), "float32")
    x[:, replica] = 50
    if not even and replica:
        x[:4] = [50, 0]
    return x


def mixture():
    """Two models on which the examples' one-hot inputs choose."""
    experts = [keras.layers.Dense(2) for _ in range(2)]
    model = MixtureOfModels(
        experts, top_k=1, load_balancing="global_batch", router_z_weight=0.0
    )
    model.build((None, 2))
    model.router.kernel.assign(np.eye(2))
    return model


def padded(replica):
    """Tokens `(12, 3)` of two sequences, and which are real: all on the first
    replica, one of the second sequence on the second."""
    rng = np.random.default_rng(replica)
    shape = (2 * PADDED_LENGTH, PADDED_WIDTH)
    tokens = rng.normal(size=shape).astype("float32") + replica
    mask = np.full(len(tokens), replica == 0)
    mask[PADDED_LENGTH] = True
    return tokens, mask


def padded_kernel():
    """A router's kernel `(3, 4)`."""
    shape = (PADDED_WIDTH, PADDED_EXPERTS)
    return np.random.default_rng(9).normal(size=shape).astype("float32")


def padded_losses(tokens, mask):
    """Each loss over replicas, and its gradient by the router's kernel."""

    def assignment_of(kernel):
        logits = keras.ops.matmul(tokens, kernel)
        conditions = routing.Conditions(mask)
        return routing.top_k_assignment(logits, 2, conditions=conditions)

    def z_loss(kernel):
        logits = assignment_of(kernel).router_logits
        return losses.router_z_loss(logits, mask, over_replicas=True)

    def balance(kind):
        return lambda kernel: losses.balancing_loss(
            kind,
            assignment_of(kernel),
            mask,
            PADDED_LENGTH,
            over_replicas=True,
        )

    found = {}
    kernel = keras.ops.convert_to_tensor(padded_kernel())
    for name, function in {
        "z_loss": z_loss,
        "global_batch": balance("global_batch"),
        "per_sequence": balance("per_sequence"),
    }.items():
        pair = kernels.value_and_gradient(function, kernel)
        found[f"{name} value"], found[f"{name} gradient"] = pair
    return found


def step(found, x_even, x_uneven):
    """Runs both routers in training; returns the first's losses by name, and
    the balance loss that the mixture added."""
    a = found["even"](x_even, training=True)
    found["uneven"](x_uneven, training=True)
    found["mixture"](x_even, training=True)
    of_mixture = sum(found["mixture"].losses)  # of its experts come zeros
    return {"mixture": of_mixture} | {
        name: losses.load_balancing_loss(
            a.router_probs,
            a.expert_index,
            over_replicas=name == "global_batch",
        )
        for name in ("switch", "global_batch")
    }
