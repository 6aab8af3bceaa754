"""A language model generates the tokens that its full forward pass gives."""

import numpy as np
import pytest

from keras_moe.models import MoELanguageModel

PROMPTS = np.array([[3, 4, 5], [6, 7, 8]], "int32")


@pytest.fixture(scope="module")
def model():
    """Return a model whose large weights make the best tokens differ."""
    rng = np.random.default_rng(3)
    model = MoELanguageModel(
        vocabulary_size=9,
        max_length=12,
        num_layers=2,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=6,
        num_experts=3,
    )
    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(size=weight.shape) * 0.7)
    return model


def greedy(model, prompts, length):
    """Return the tokens of repeated full forward passes (id 0 is padding)."""
    ids = prompts
    while ids.shape[1] < length:
        logits = model.predict(ids, verbose=0)[:, -1]
        best = logits[:, 1:].argmax(axis=-1) + 1
        ids = np.concatenate([ids, best[:, None].astype("int32")], axis=1)
    return ids


def test_generate_is_the_greedy_choice_of_the_full_model(model):
    found = model.generate(PROMPTS, 7)
    np.testing.assert_array_equal(found, greedy(model, PROMPTS, 7))
