"""Floor 3: a model from outside.

`find.py` finds mixtures and routers however deep they are, `observe.py` notes
what layers compute or lets them compute something else for a while,
`rebuild.py` makes a model again with layers replaced, and `assignments.py`
returns where the tokens of a data set go, by the batches of `batches.py`.
"""

from keras_moe.model_surgery.assignments import routing_of
from keras_moe.model_surgery.find import find_blocks

__all__ = ["find_blocks", "routing_of"]
