"""Floor 3: a model from outside.

`find.py` finds mixtures and routers however deep they are, `observe.py` keeps
what layers compute or replaces it for a while, `rebuild.py` makes a model again
with layers replaced, and `assignments.py` returns where the tokens of a data
set go, with the batches of `batches.py`. `wrapper.py` is the base of models
around another model, and `partly_trained.py` of those that train only a part.
"""

from keras_moe.model_surgery.assignments import routing_of
from keras_moe.model_surgery.find import find_blocks

__all__ = ["find_blocks", "routing_of"]
