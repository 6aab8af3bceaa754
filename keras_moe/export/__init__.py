"""Floor 4: a trained model as an artifact that runs without Keras.

model -> one form of inputs (`signature.py`) -> an artifact, written by the
backend that can (`writers.py`; `elsewhere.py` starts `worker.py` for that) ->
run in its own runtime (`runtimes.py`) on inputs that reach every expert
(`probes.py`) and compared (`verifying.py`) -> `moe.json` beside it
(`manifest.py`). `exporting.py` is that walk.
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
