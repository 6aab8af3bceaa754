"""Test balance in the batch, in each sequence, and over all replicas."""

import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import replica_step
from backend import BACKEND, draw, to_numpy
from keras import ops
from paths import SUPPORT

from keras_moe import (
    ExpertChoiceRouter,
    MixtureOfModels,
    MoEBlock,
    Router,
    losses,
    routing,
)

E = 4


def routed(rng, tokens):
    return routing.top_k_assignment(draw(rng, tokens, E), 2)


def test_sequences_are_balanced_one_by_one(rng):
    """The loss is the mean of the batch's loss on each sequence alone."""
    a = routed(rng, 15)
    loss = losses.sequence_balancing_loss(
        a.router_probs, a.token_index, a.expert_index, 3
    )
    alone = [
        losses.load_balancing_loss(
            a.router_probs[i : i + 5], a.expert_index[2 * i : 2 * i + 10]
        )
        for i in (0, 5, 10)
    ]
    wanted = np.mean([to_numpy(one) for one in alone])
    assert to_numpy(loss) == pytest.approx(wanted, rel=1e-5)


def test_sequences_without_their_padding(rng):
    """The second sequence has two tokens; the empty third does not count."""
    mask = np.ones((3, 5), bool)
    mask[1, 2:] = mask[2] = False
    conditions = routing.Conditions(ops.array(mask.ravel()))
    a = routing.top_k_assignment(draw(rng, 15, E), 2, conditions=conditions)
    loss = losses.sequence_balancing_loss(
        a.router_probs, a.token_index, a.expert_index, 3, conditions.token_mask
    )
    alone = [
        to_numpy(
            losses.load_balancing_loss(
                a.router_probs[i : i + n], a.expert_index[2 * i : 2 * (i + n)]
            )
        )
        for i, n in ((0, 5), (5, 2))
    ]
    assert to_numpy(loss) == pytest.approx(np.mean(alone), rel=1e-5)


def added_loss(block, x):
    block(x, training=True)
    (loss,) = block.losses
    return to_numpy(loss)


def test_a_block_balances_by_its_argument(rng):
    """Each of two sequences uses an expert of its own, with probability 1.

    The loss is 1 (even) over the batch, and 2 (its maximum) per sequence.
    """
    x = np.zeros((2, 6, 2), "float32")
    x[0, :, 0] = x[1, :, 1] = 50
    found = {}
    for way in losses.LOAD_BALANCING:
        block = MoEBlock(
            2, 4, top_k=1, load_balancing=way, load_balancing_weight=0.5
        )
        block.build(x.shape)
        block.router.kernel.assign(np.eye(2))
        found[way] = added_loss(block, x)
    assert found["switch"] == pytest.approx(0.5, rel=1e-5)
    assert found["global_batch"] == pytest.approx(0.5, rel=1e-5)
    assert found["per_sequence"] == pytest.approx(1.0, rel=1e-5)


def test_per_sequence_needs_sequences(rng):
    block = MoEBlock(2, 4, load_balancing="per_sequence")
    with pytest.raises(ValueError, match="of rank 2, which have no sequences"):
        block(draw(rng, 3, 5), training=True)


@pytest.mark.parametrize(
    "router, adds",
    [
        (lambda: Router(E), True),
        (lambda: Router(E, expert_bias=True), False),
        (lambda: ExpertChoiceRouter(E, bidirectional=True), False),
    ],
)
def test_a_router_determines_whether_the_loss_is_added(rng, router, adds):
    block = MoEBlock(E, 4, router=router())
    x = draw(rng, 8, 5)
    block(x, training=True)
    assert len(block.losses) == adds
    weighted = MoEBlock(E, 4, router=router(), load_balancing_weight=0.1)
    weighted(x, training=True)
    assert len(weighted.losses) == 1


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Return the results of two replicas (JAX has one program for both)."""
    if BACKEND == "jax":
        pytest.skip("a JAX program has the batches of all replicas")
    folder = tmp_path_factory.mktemp("replicas")
    script = SUPPORT / f"replicas_{BACKEND}.py"
    subprocess.run(
        [sys.executable, "-W", "ignore", script, folder],
        check=True,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        timeout=300,
    )
    return [dict(np.load(folder / f"{replica}.npz")) for replica in range(2)]


def test_replicas_are_balanced_together(replicas):
    """Two replicas that use one expert each are balanced together.

    The bias does not move, and the global loss is that of even shares.
    """
    for found in replicas:
        # P is (1, 0) or (0, 1): E * f . P is 1 for both's f, and 2 for its own.
        assert found["global_batch"] == pytest.approx(1, rel=1e-5)
        assert found["switch"] == pytest.approx(2, rel=1e-5)
        # The weight of a mixture's load-balancing loss is 0.01.
        assert found["mixture"] == pytest.approx(0.01, rel=1e-5)
        np.testing.assert_allclose(found["even"], [0, 0])
        # Expert 0 has twelve tokens of both replicas, and expert 1 has four.
        np.testing.assert_allclose(found["uneven"], [-0.5, 0.5])


def logits_of_both(kernel):
    """Return the logits of the real tokens on each replica, in float64."""
    found = []
    for replica in range(2):
        tokens, mask = replica_step.padded(replica)
        found.append(tokens[mask].astype("float64") @ kernel)
    return found


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def balance(logits, share):
    return logits.shape[1] * (share * softmax(logits).mean(axis=0)).sum()


def share_of_pairs(logits):
    """Return the share of each expert in all tokens' two best."""
    chosen = np.argsort(-logits, axis=1)[:, :2]
    return np.bincount(chosen.ravel(), minlength=logits.shape[1]) / chosen.size


def z_loss(kernel, at):
    logits = np.concatenate(logits_of_both(kernel))
    return np.mean(np.log(np.exp(logits).sum(axis=1)) ** 2)


def global_batch(kernel, at):
    share = share_of_pairs(np.concatenate(logits_of_both(at)))
    return balance(np.concatenate(logits_of_both(kernel)), share)


def per_sequence(kernel, at):
    """Return the mean over two sequences of replica 0 and one of replica 1."""
    length = replica_step.PADDED_LENGTH

    def sequences(kernel):
        first, second = logits_of_both(kernel)
        return [first[:length], first[length:], second]

    shares = [share_of_pairs(logits) for logits in sequences(at)]
    pairs = zip(sequences(kernel), shares, strict=True)
    return np.mean([balance(logits, share) for logits, share in pairs])


def importance(kernel, at):
    shares = softmax(np.concatenate(logits_of_both(kernel))).mean(axis=0)
    return shares.var() / shares.mean() ** 2


def load(kernel, at):
    """Return the load loss without noise of standard deviation 0.5."""
    logits = np.concatenate(logits_of_both(kernel))
    z = (logits - np.sort(logits, axis=1)[:, -2:-1]) / 0.5
    probs = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    loads = probs.mean(axis=0)
    return loads.var() / loads.mean() ** 2


def entropy(probs):
    return -(probs * np.log(probs)).sum(axis=-1)


def of_modalities(kernel):
    """Return probabilities by modality; the last token is of the first one."""
    first, second = logits_of_both(kernel)
    even = np.concatenate([first[::2], second])
    return softmax(even), softmax(first[1::2])


def local_entropy(kernel, at):
    return sum(entropy(probs).mean() for probs in of_modalities(kernel))


def global_entropy(kernel, at):
    means = [probs.mean(axis=0) for probs in of_modalities(kernel)]
    return sum(max(0, replica_step.MOST - entropy(mean)) for mean in means)


def top_p(kernel, at):
    return entropy(softmax(np.concatenate(logits_of_both(kernel)))).mean()


def relu_l1(kernel, at):
    """Return the L1 loss with a target of two of the four experts."""
    active = (np.concatenate(logits_of_both(at)) > 0).mean(axis=0) * 4 / 2
    gates = np.maximum(np.concatenate(logits_of_both(kernel)), 0)
    return (active * gates.mean(axis=0)).sum()


@pytest.mark.parametrize("name", list(replica_step.OWN_LOSSES))
def test_a_routers_own_losses_are_those_of_all_replicas(replicas, name):
    first, second = (found[name] for found in replicas)
    assert first > 0
    assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        z_loss,
        global_batch,
        per_sequence,
        importance,
        load,
        local_entropy,
        global_entropy,
        top_p,
        relu_l1,
    ],
)
def test_replicas_weigh_real_tokens_alike(replicas, loss):
    """The mean of the replicas' gradients is that of all tokens together.

    One replica has twelve tokens, and the other has one. NumPy computes the
    gradient of all tokens in float64.
    """
    kernel = replica_step.padded_kernel().astype("float64")
    for found in replicas:
        value = found[f"{loss.__name__} value"]
        assert value == pytest.approx(loss(kernel, kernel), rel=1e-5)
    expected = np.zeros_like(kernel)
    for place in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel)
        step[place] = 1e-6
        rise = loss(kernel + step, kernel) - loss(kernel - step, kernel)
        expected[place] = rise / 2e-6
    assert np.abs(expected).max() > 1e-3
    gradients = [found[f"{loss.__name__} gradient"] for found in replicas]
    np.testing.assert_allclose(
        np.mean(gradients, axis=0), expected, rtol=1e-4, atol=1e-6
    )


def test_a_mixture_of_models_balances_the_global_batch(rng):
    """Without replicas, both kinds are equal, and a config keeps the kind."""
    x = draw(rng, 6, 5)
    found = []
    for kind in ("switch", "global_batch"):
        experts = [keras.layers.Dense(3) for _ in range(E)]
        model = MixtureOfModels(experts, top_k=2, load_balancing=kind, seed=0)
        model.build(x.shape)
        model.router.kernel.assign(np.random.default_rng(0).normal(size=(5, E)))
        model(x, training=True)
        found.append(sum(to_numpy(loss) for loss in model.losses))
        again = MixtureOfModels.from_config(model.get_config())
        assert again.load_balancing == kind
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    with pytest.raises(ValueError, match="must be 'switch' or 'global_batch'"):
        MixtureOfModels(experts, top_k=2, load_balancing="per_sequence")
