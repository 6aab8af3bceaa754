"""Export models to formats that have neither attention nor exact GELU."""

import pytest
from backend import BACKEND
from model_zoo import MODELS

from keras_moe.export import FORMATS, export

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="TensorFlow writes these formats"
)


def slow(*values):
    """Return a case that `make test` leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        slow("MoELanguageModel", "tf_saved_model"),
        ("MoELanguageModel", "litert"),
        slow("MoESeq2Seq", "litert"),
        ("MoEVisionClassifier", "onnx"),
        slow("MoEClassifier", "openvino"),
    ],
)
def test_a_model_at_two_sizes(name, format, tmp_path):
    verified = export(MODELS[name](), tmp_path / "model", format)["verified"]
    assert verified["largest_difference"] <= FORMATS[format].tolerance
    small, large = verified["shapes"][:2]
    assert small != large
    assert verified["unreached"] == {}
