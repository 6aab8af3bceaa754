"""Compute one replica's step of the replicas' tests."""

import keras
import numpy as np

import keras_moe
from keras_moe import MixtureOfModels, Router, kernels, losses, routing

PADDED_LENGTH, PADDED_WIDTH, PADDED_EXPERTS = 6, 3, 4
MOST = 1.38  # an entropy slightly below that of four equal parts, log(4)
# The only real token of the second replica has the first modality.
MODALITIES = np.arange(2 * PADDED_LENGTH, dtype="int32") % 2
OWN_LOSSES = {
    "noisy": lambda: keras_moe.NoisyTopKRouter(4),
    "modality": lambda: keras_moe.ModalityRouter(4, 2, threshold=MOST),
    "top_p": lambda: keras_moe.TopPRouter(4),
    "relu": lambda: keras_moe.ReLURouter(4, l1_start=1.0),
}


def routers():
    """Return top-1 routers with a bias, whose logits are their inputs."""
    found = {}
    for name in ("even", "uneven"):
        router = Router(2, 1, expert_bias=True, expert_bias_step=0.5)
        router.build((None, 2))
        router.kernel.assign(np.eye(2))
        found[name] = router
    return {**found, "mixture": mixture(), "own": with_own_losses()}


def with_own_losses():
    """Return a router of each kind that has its own losses."""
    found = {name: make() for name, make in OWN_LOSSES.items()}
    for router in found.values():
        router.build((None, PADDED_WIDTH))
        router.kernel.assign(padded_kernel())
    return found


def inputs(replica, even):
    """Return tokens for the replica's expert or, if uneven, mostly expert 0."""
    x = np.zeros((8, 2), "float32")
    x[:, replica] = 50
    if not even and replica:
        x[:4] = [50, 0]
    return x


def mixture():
    """Return two models that one-hot inputs choose between."""
    experts = [keras.layers.Dense(2) for _ in range(2)]
    model = MixtureOfModels(
        experts, top_k=1, load_balancing="global_batch", router_z_weight=0.0
    )
    model.build((None, 2))
    model.router.kernel.assign(np.eye(2))
    return model


def padded(replica):
    """Return tokens `(12, 3)` of two sequences, and their mask.

    All tokens are real on the first replica. Only the first token of the second
    sequence is real on the second replica.
    """
    rng = np.random.default_rng(replica)
    shape = (2 * PADDED_LENGTH, PADDED_WIDTH)
    tokens = rng.normal(size=shape).astype("float32") + replica
    mask = np.full(len(tokens), replica == 0)
    mask[PADDED_LENGTH] = True
    return tokens, mask


def padded_kernel():
    """Return a router's kernel `(3, 4)`."""
    shape = (PADDED_WIDTH, PADDED_EXPERTS)
    return np.random.default_rng(9).normal(size=shape).astype("float32")


def own_losses(found, tokens, mask):
    """Return the loss of each router in training."""
    return {
        name: router(
            tokens,
            mask=mask,
            training=True,
            router_inputs=MODALITIES if name == "modality" else None,
        ).router_loss
        for name, router in found["own"].items()
    }


def functions_of_kernel(tokens, mask):
    """Return each router loss over replicas as a function of the kernel."""
    conditions = routing.Conditions(mask)
    together = {"over_replicas": True}

    def logits(kernel):
        return keras.ops.matmul(tokens, kernel)

    def probs(kernel):
        return keras.ops.softmax(logits(kernel))

    def entropy(loss, kernel, **options):
        given = probs(kernel), MODALITIES, 2, mask
        return keras.ops.sum(loss(*given, **options, **together))

    return {
        "importance": lambda kernel: losses.importance_loss(
            probs(kernel), mask, **together
        ),
        "load": lambda kernel: losses.load_loss(
            logits(kernel), logits(kernel), 0.5, 2, mask, **together
        ),
        "local_entropy": lambda kernel: entropy(
            losses.local_entropy_loss, kernel
        ),
        "global_entropy": lambda kernel: entropy(
            losses.global_entropy_loss, kernel, threshold=MOST
        ),
        "top_p": lambda kernel: (
            routing.top_p_assignment(
                logits(kernel), 0.5, 2, False, 1.0, conditions, **together
            ).router_loss
        ),
        "relu_l1": lambda kernel: (
            routing.relu_assignment(
                logits(kernel), 4, 2, [1.0], conditions, **together
            ).router_loss
        ),
    }


def padded_losses(tokens, mask):
    """Return each loss over replicas, and its gradient for the kernel."""

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
        **functions_of_kernel(tokens, mask),
    }.items():
        pair = kernels.value_and_gradient(function, kernel)
        found[f"{name} value"], found[f"{name} gradient"] = pair
    return found


def step(found, x_even, x_uneven):
    """Run both routers and the mixture in training; return losses by name.

    The losses are the first router's, and the one that the mixture adds.
    """
    a = found["even"](x_even, training=True)
    found["uneven"](x_uneven, training=True)
    found["mixture"](x_even, training=True)
    of_mixture = sum(found["mixture"].losses)  # the experts add zeros
    return {"mixture": of_mixture} | {
        name: losses.load_balancing_loss(
            a.router_probs,
            a.expert_index,
            over_replicas=name == "global_batch",
        )
        for name in ("switch", "global_batch")
    }
