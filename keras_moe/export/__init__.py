"""Floor 4: export trained models as artifacts that run without Keras.

`exporting.py` exports a model in five steps: wrap the model in one form of
inputs (`signature.py`), write the artifact with the backend that supports its
format (`writers.py`; `elsewhere.py` starts `worker.py` if that is another
backend), run the artifact in its own runtime (`runtimes.py`) on inputs that
reach every expert (`probes.py`), compare the outputs (`verifying.py`), and
write `moe.json` beside the artifact (`manifest.py`).
"""

from keras_moe.export.artifact import Artifact, load
from keras_moe.export.describing import describe
from keras_moe.export.exporting import export, verify
from keras_moe.export.formats import FORMATS, Format

__all__ = [
    "Artifact",
    "FORMATS",
    "Format",
    "describe",
    "export",
    "load",
    "verify",
]
