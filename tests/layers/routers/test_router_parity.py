"""Compare routers with those of Hugging Face transformers.

`tests/support/router_oracle.py` runs transformers' routers. Compared are the
combine weights as a table `(T, E + N)`, zero for experts that are not chosen,
and the gradients of its weighted sum.
"""

import backend
import keras
import numpy as np
import pytest
from cases import cases
from elsewhere import run_on

from keras_moe import Router, SparseMixerRouter, routing

E, K = 12, 3
GROUPS = {"num_groups": 4, "top_k_groups": 2, "routed_scaling_factor": 2.5}
ROUTERS = {
    "deepseek_v2": lambda: Router(E, K, normalize_weights=False, **GROUPS),
    "deepseek_v4": lambda: Router(
        E,
        K,
        "sqrt_softplus",
        expert_bias=True,
        expert_bias_step=0,
        routed_scaling_factor=2.5,
    ),
    "gemma4": lambda: Router(
        E, K, normalize_inputs=True, norm_epsilon=1e-3, expert_scale=True
    ),
    "gpt_oss": lambda: Router(E, K, "topk_softmax", use_bias=True),
    "laguna": lambda: Router(
        E, K, "sigmoid", logit_softcap=1.5, expert_bias=True
    ),
    "mistral4": lambda: Router(E, K, group_score="two_best", **GROUPS),
    "phimoe": lambda: SparseMixerRouter(E, margin=0.3),
}


EVERYWHERE = ("deepseek_v4", "gemma4", "phimoe")


class Weights(keras.layers.Layer):
    """Returns the combine weights of a router as a table."""

    def __init__(self, router):
        super().__init__()
        self.router = router

    def build(self, input_shape):
        if not self.router.built:
            self.router.build(input_shape)

    def call(self, x, training=None):
        found = self.router(x, training=training)
        columns = [*range(E)]
        columns += [E + 1 + n for n in range(self.router.num_null_experts)]
        return routing.dense_weights(
            found, self.router.top_k, np.array(columns, "int32")
        )


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Return the folder of the tables and gradients of each router."""
    out = tmp_path_factory.mktemp("oracle")
    run_on("torch", "router_oracle", out, *ROUTERS, "phimoe_training")
    return out


@pytest.mark.parametrize("name", cases(ROUTERS, everywhere=EVERYWHERE))
def test_weights_and_gradients(oracle, name, monkeypatch):
    arrays = dict(np.load(oracle / f"{name}.npz"))
    router = ROUTERS[name]()
    router.build((None, 16))
    for key, value in arrays.items():
        part, _, weight = key.partition(":")
        if part == "weight":
            getattr(router, weight).assign(value)
    monkeypatch.setattr(backend, "upstream", lambda _: arrays["upstream"])
    y, gradients = backend.layer_gradients(Weights(router), arrays["x"])
    np.testing.assert_allclose(y, arrays["y"], atol=1e-6)
    got = {n.split("/")[-1]: g for n, g in gradients.items()}
    if "expert_scale" in got:
        got["expert_scale_weight"] = got.pop("expert_scale")
    wanted = {
        key.removeprefix("gradient:"): value
        for key, value in arrays.items()
        if key.startswith("gradient:")
    }
    assert got.keys() == wanted.keys()
    for weight, gradient in wanted.items():
        assert np.abs(gradient).max() > 0.01
        np.testing.assert_allclose(got[weight], gradient, atol=1e-5)


def test_a_sparse_mixer_in_training(oracle, monkeypatch):
    """The same random numbers give the same experts, weights, and gradients.

    Transformers shortens a weight to 0.3333 of it, and here to a third.
    """
    arrays = dict(np.load(oracle / "phimoe_training.npz"))
    columns = np.arange(E, dtype="int32")

    def weights(x, kernel):
        found = routing.sparse_mixer_assignment(
            x @ kernel, 0.3, noise=arrays["noise"], draw=arrays["draw"]
        )
        return routing.dense_weights(found, 2, columns)

    monkeypatch.setattr(backend, "upstream", lambda _: arrays["upstream"])
    y, gradients = backend.value_and_gradients(
        weights, arrays["x"], arrays["weight:kernel"]
    )
    np.testing.assert_allclose(y, arrays["y"], atol=5e-5)
    assert (y > 0).sum() == 80 and (y.max(1) < 0.9).any()
    wanted = [arrays[f"gradient:{name}"] for name in ("inputs", "kernel")]
    for gradient, value in zip(gradients, wanted, strict=True):
        assert np.abs(value).max() > 0.01
        np.testing.assert_allclose(gradient, value, atol=1e-5)
