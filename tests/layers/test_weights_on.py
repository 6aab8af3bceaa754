"""Test combine weights that multiply the inputs of the experts.

`test_parity_transformers.py` compares values and gradients with Llama 4.
"""

import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy
from compress_cases import block_model
from mixture_oracle import expert, randomize

from keras_moe import ExpertChoiceRouter, MoEBlock, ReLURouter, Router
from keras_moe.compress import prune_experts, to_dense

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

E, D = 4, 6


def by_hand(block, x, kept):
    """Return the sum of `f_e(w x)` over the pairs of an `Assignment`."""
    y = np.zeros_like(x)
    pairs = (kept.token_index, kept.expert_index, kept.combine_weights)
    for token, e, weight in zip(*map(to_numpy, pairs), strict=True):
        if e < E:
            y[token] += expert(block.experts, e, weight * x[[token]])[0]
    return y


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.every_backend),
        {"capacity_factor": 0.5},
        {"router": ExpertChoiceRouter(E, bidirectional=True)},
        {"router": ReLURouter(E)},
        {"router": Router(E, 2, "sigmoid", routed_scaling_factor=2.5)},
    ],
    ids=["plain", "capacity", "expert choice", "relu", "sigmoid"],
)
def test_each_expert_gets_the_weighted_token(options, rng):
    """Padding, dropped pairs, and experts that are off add nothing."""
    block = MoEBlock(E, 7, weights_on="inputs", **options)
    x = draw(rng, 12, D)
    block.build(x.shape)
    randomize(block, rng)
    block.disable_experts([1])
    mask = np.arange(12) != 5
    y, kept = block(x, mask=mask, training=True, return_assignment=True)
    chosen = to_numpy(kept.expert_index)
    assert (chosen != 1).all() and (chosen == E).any()
    wanted = by_hand(block, x, kept)
    np.testing.assert_allclose(to_numpy(y), wanted, rtol=1e-4, atol=1e-4)
    again = block(x, mask=mask, replay=kept) if "router" not in options else y
    np.testing.assert_allclose(to_numpy(again), wanted, rtol=1e-4, atol=1e-4)


def test_linear_experts_do_not_distinguish_inputs_from_outputs(rng):
    """`f(w x) = w f(x)`: also all gradients are those of weighted outputs."""
    x = draw(rng, 9, D)
    results = []
    for where in ("outputs", "inputs"):
        options = {"activation": "linear", "use_bias": False}
        block = MoEBlock(E, 7, weights_on=where, **options)
        block.build(x.shape)
        randomize(block, np.random.default_rng(0))
        results.append(layer_gradients(block, x))
    (y, wanted), (other, found) = results
    np.testing.assert_allclose(other, y, rtol=1e-4, atol=1e-4)
    assert wanted.keys() == found.keys() and len(found) == 4
    for name, gradient in wanted.items():
        np.testing.assert_allclose(
            found[name], gradient, rtol=1e-3, atol=1e-3, err_msg=name
        )


def test_examples_are_multiplied_as_a_whole(rng):
    block = MoEBlock(E, 7, level="example", weights_on="inputs")
    x = draw(rng, 3, 5, D)
    y, kept = block(x, return_assignment=True)
    for b in range(3):
        wanted = sum(
            expert(
                block.experts,
                to_numpy(kept.expert_index)[2 * b + k],
                to_numpy(kept.combine_weights)[2 * b + k] * x[b],
            )
            for k in range(2)
        )
        np.testing.assert_allclose(to_numpy(y)[b], wanted, rtol=1e-4, atol=1e-5)


def test_saliency_does_not_weight_the_outputs_twice(rng):
    """REAP: the mean norm of `f_e(w x)` over the pairs of expert e."""
    block = MoEBlock(E, 7, 1, weights_on="inputs", name="block")
    model = block_model(block, length=3)
    width = model.inputs[0].shape[-1]
    x = draw(rng, 20, 3, width)
    _, kept = block(x, return_assignment=True)
    index, weight = map(to_numpy, (kept.expert_index, kept.combine_weights))
    rows = weight[:, None] * x.reshape(-1, width)
    norms = [
        np.linalg.norm(expert(block.experts, e, rows[index == e]), axis=1)
        for e in range(E)
    ]
    worth = [n.mean() if len(n) else 0 for n in norms]
    smaller = prune_experts(model, 2, by="saliency", data=x)
    left = to_numpy(smaller.layers[-1].experts.up_kernel)
    best = np.sort(np.argsort(worth)[-2:])
    np.testing.assert_array_equal(left, to_numpy(block.experts.up_kernel)[best])
    assert smaller.layers[-1].weights_on == "inputs"
    with pytest.raises(ValueError, match="`model` must .*Rec.*'inputs'"):
        to_dense(model)


@pytest.mark.parametrize(
    "options",
    [
        {"weights_on": "input"},
        {"weights_on": None},
        {"weights_on": "inputs", "router": Router(E, num_null_experts=1)},
    ],
    ids=str,
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="`weights_on` must .*Received: wei"):
        MoEBlock(E, 7, **options)
