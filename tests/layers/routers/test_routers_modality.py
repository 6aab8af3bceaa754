"""Check `ModalityRouter` by hand, and its errors."""

import numpy as np
import pytest
from backend import draw
from entropies import entropy
from router_zoo import arrays, logit_router

from keras_moe import (
    ModalityRouter,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def test_experts_of_a_modality_and_the_loss_by_hand():
    """Token 0 uses experts 0 and 1, by the softmax of its logits 1 and 2."""
    router = ModalityRouter(
        3,
        2,
        top_k=1,
        experts_of_modality=[[0, 1], [2]],
        local_entropy_weight=[2, 1],
        global_entropy_weight=0.5,
    )
    logit_router(router)
    x = np.array([[1, 2, 9], [5, 1, 0]], "float32")
    ids = np.array([0, 1])
    a = arrays(router(x, router_inputs=ids))
    p = 1 / (1 + np.exp(-1))
    np.testing.assert_array_equal(a.expert_index, [1, 2])
    np.testing.assert_allclose(a.combine_weights, [p, 1], rtol=1e-6)
    np.testing.assert_allclose(
        a.router_probs, [[1 - p, p, 0], [0, 0, 1]], atol=1e-6
    )
    np.testing.assert_array_equal(a.router_logits, x)
    h = entropy([1 - p, p])
    assert a.router_loss == pytest.approx(2 * h - 0.5 * h, rel=1e-5)
    router.disable_experts([2])
    a = arrays(router(x, router_inputs=ids))
    np.testing.assert_array_equal(a.expert_index, [1, 3])
    np.testing.assert_allclose(a.combine_weights, [p, 0], rtol=1e-6)


def test_a_bias_per_modality_and_ids_of_sequences():
    router = logit_router(ModalityRouter(3, 2, 1, modality_bias=True))
    router.modality_bias_weight.assign([[0, 3, 0], [0, 0, 1.5]])
    x = np.array([[[1, 0, 0], [5, 0, 0]]] * 2, "float32")
    a = arrays(router(x, router_inputs=np.array([0, 1])))
    np.testing.assert_array_equal(a.expert_index, [1, 0, 2, 0])
    np.testing.assert_allclose(a.router_logits[2], [1, 0, 1.5])
    best = np.exp(1.5) / (np.exp(1) + 1 + np.exp(1.5))
    assert a.combine_weights[2] == pytest.approx(best, rel=1e-5)


def test_thresholds_turn_the_global_loss_off(rng):
    x, ids = draw(rng, 20, 3), rng.integers(0, 2, 20)
    given = {"local_entropy_weight": 0, "global_entropy_weight": 1}
    for tau, low in ((0.0, 0.0), ([3, 0], 3 - np.log(3))):
        router = ModalityRouter(3, 2, threshold=tau, **given)
        loss = arrays(router(x, router_inputs=ids)).router_loss
        assert loss == 0 if low == 0 else low <= loss <= 3
    assert not ModalityRouter(3, 2, 2, None, 0, [0, 0]).has_loss


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_modalities": 0}, "`num_modalities` must be"),
        ({"local_entropy_weight": -1}, "`local_entropy_weight` must be"),
        ({"global_entropy_weight": [1]}, "one for each of 2 modalities"),
        ({"threshold": [1, -2]}, "`threshold` must be"),
        ({"experts_of_modality": [[0, 1]]}, "for each of the 2 modalities"),
        ({"experts_of_modality": [[0, 1], [3]]}, "top_k=2 or more experts"),
        ({"experts_of_modality": [[0, 1], [3, 4]]}, "in 0 ... 3"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModalityRouter(**{"num_experts": 4, "num_modalities": 2, **arguments})


def test_a_modality_out_of_range_is_an_error():
    router = ModalityRouter(3, 2)
    x = np.ones((2, 4), "float32")
    for bad in (-1, 2):
        with pytest.raises(ValueError, match="modalities in 0 ... 1"):
            router(x, router_inputs=np.array([0, bad]))
    mask = np.array([True, False])
    a = arrays(router(x, mask=mask, router_inputs=np.array([0, 9])))
    np.testing.assert_array_equal(a.expert_index[2:], [3, 3])
    assert np.isfinite(a.combine_weights).all()
