"""Balance of the batch, of each sequence, of all replicas together."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import ops

from keras_moe import ExpertChoiceRouter, MoEBlock, Router, losses, routing

E = 4


def routed(rng, tokens):
    return routing.top_k_assignment(draw(rng, tokens, E), 2)


def test_sequences_are_balanced_one_by_one(rng):
    """The mean of the batch's loss on each sequence alone."""
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
    """The second sequence has two tokens, the third none: it is no third."""
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


def test_a_block_balances_as_it_is_told(rng):
    """Two sequences, each full of its own expert: even as a batch (1), as
    uneven as can be one by one (2). Probabilities are 0 or 1."""
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
def test_a_router_says_whether_it_wants_the_loss(rng, router, adds):
    block = MoEBlock(E, 4, router=router())
    x = draw(rng, 8, 5)
    block(x, training=True)
    assert len(block.losses) == adds
    told = MoEBlock(E, 4, router=router(), load_balancing_weight=0.1)
    told(x, training=True)
    assert len(told.losses) == 1


@pytest.mark.skipif(
    BACKEND == "jax", reason="a JAX program sees the batches of all replicas"
)
def test_replicas_are_balanced_together(tmp_path):
    """Two replicas, all tokens of one to expert 0, of the other to expert 1:
    together even. The bias stays, the global loss is that of even shares."""
    script = pathlib.Path(__file__).with_name(f"replicas_{BACKEND}.py")
    subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path],
        check=True,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        timeout=300,
    )
    for replica in range(2):
        found = np.load(tmp_path / f"{replica}.npz")
        # P is (1, 0) or (0, 1): E * f . P is 1 with f of both, 2 with its own.
        assert found["global_batch"] == pytest.approx(1, rel=1e-5)
        assert found["switch"] == pytest.approx(2, rel=1e-5)
        np.testing.assert_allclose(found["even"], [0, 0])
        # Twelve tokens of expert 0, four of expert 1, whoever holds them.
        np.testing.assert_allclose(found["uneven"], [-0.5, 0.5])
