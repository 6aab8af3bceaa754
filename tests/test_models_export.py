"""Models go into a SavedModel and say there what they say here."""

import numpy as np
import pytest
from backend import BACKEND
from model_zoo import MODELS, batch_of, outputs_of

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="SavedModel is TensorFlow's"
)


@pytest.mark.parametrize("name", ["MoELanguageModel", "MoEVisionClassifier"])
def test_a_saved_model_at_two_batch_sizes(name, rng, tmp_path):
    import tensorflow as tf

    model = MODELS[name]()
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model"))
    for samples in (2, 5):
        inputs, _ = batch_of(name, rng, samples)
        np.testing.assert_allclose(
            served.serve(tf.constant(inputs)).numpy(),
            outputs_of(model, inputs),
            rtol=1e-4,
            atol=1e-5,
        )
