"""Floor 3: what happens inside a model, seen from outside.

`batches.py` cuts data into batches; `assignments.py` runs a model on them and
returns where each token went. Both use `keras_moe.layers.find` and
`keras_moe.layers.calling`.
"""

from keras_moe.model_surgery.assignments import routing_of

__all__ = ["routing_of"]
