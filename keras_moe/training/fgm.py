"""Adversarial steps in the space of the embeddings.

B batch; an embedding is `(B, ...)`.
"""

import contextlib
import functools
import threading
from collections.abc import Callable

import keras
from keras import ops

from keras_moe import kernels
from keras_moe.layers import checks
from keras_moe.training.wrapper import Wrapper
from keras_moe.types import Tensor

LEAST_NORM = 1e-12
_CALLS: dict[int, dict[int, Callable]] = {}  # by layer, by thread


def adversarial_step(gradient: Tensor, epsilon: float) -> Tensor:
    """Returns `epsilon * g / ||g||_2`, the norm over each example.

    Args:
        gradient: float `(B, ...)`, g.
        epsilon: length of the step.

    Returns:
        Like `gradient`; zero where it is.
    """
    g = ops.cast(gradient, "float32")
    axes = tuple(range(1, len(g.shape)))
    largest = ops.max(ops.abs(g), axis=axes, keepdims=True)
    g = g / ops.maximum(largest, 1e-30)  # so that squares do not vanish
    norm = ops.sqrt(ops.sum(ops.square(g), axis=axes, keepdims=True))
    return ops.cast(epsilon * g / ops.maximum(norm, LEAST_NORM), gradient.dtype)


@keras.saving.register_keras_serializable(package="keras_moe")
class FGM(Wrapper):
    """Trains a model on its embeddings and on what would hurt it most there.

    The fast gradient method on embeddings (Miyato et al. 2017, "Adversarial
    Training Methods for Semi-Supervised Text Classification", section 3;
    after Goodfellow et al. 2015): with g the gradient of the loss with respect
    to the embeddings of an example, they are moved by `r = epsilon * g /
    ||g||_2`, a constant, and the loss is `L(e) + weight * L(e + r)`. The paper
    also normalises the embeddings; that is left to the model.

    In evaluation it is the plain loss. What layers add, such as load-balancing
    losses, counts once, statistics too. A step costs about three. Under
    `mixed_float16` small gradients vanish; `mixed_bfloat16` keeps them.

    Args:
        model: a model that calls `embedding` once.
        embedding: a layer inside `model`, or its name, whose output is moved:
            `(B, ...)`, an example a row.
        epsilon: 0 or above, length of the move. 1 is a start where embeddings
            have a standard deviation near 1.
        weight: 0 or above, of the second loss.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: for an argument out of its range, an embedding that is not
            in the model, not once, or that it calls more than once.
    """

    arguments = ("embedding", "epsilon", "weight")

    def __init__(
        self,
        model,
        embedding,
        epsilon: float = 1.0,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.embedding = getattr(embedding, "name", embedding)
        self.epsilon = checks.check_weight("epsilon", epsilon)
        self.weight = checks.check_weight("weight", weight)
        self._passing = threading.local()
        self._find_embedding()

    def _find_embedding(self):
        layers = list(self.inner._flatten_layers())
        found = [x for x in layers if x.name == self.embedding]
        if len(found) == 1:
            return found[0]
        raise ValueError(
            "`embedding` must name one layer inside `model`. Received: "
            f"embedding={self.embedding!r}, a model with {len(found)} of that "
            f"name among {sorted(x.name for x in layers)}. Name the layer when "
            "building the model; call a subclassed model once before."
        )

    def call(self, inputs, training=None):
        """Returns what the model inside does; keeps the embeddings."""
        if not training:
            return self.inner(inputs, training=training)
        layer, kept = self._find_embedding(), []
        own_call = _own_call(layer)

        def keep(*args, **kwargs):
            kept.append(own_call(*args, **kwargs))
            return kept[-1]

        with _calling(layer, keep):
            outputs = self.inner(inputs, training=True)
        if len(kept) != 1:
            raise ValueError(
                "`embedding` must be called once in a pass of `model`. "
                f"Received: {self.embedding!r}, called {len(kept)} times. "
                "Name the layer behind that all inputs pass through."
            )
        self._passing.embedded = kept[0]
        return outputs

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the scalar loss of a batch; see the class."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        embedded = self._passing.__dict__.pop("embedded")
        layer = self._find_embedding()

        def loss_of(embedded):
            with self.no_trace(), _calling(layer, lambda *_, **__: embedded):
                outputs = self.inner(x, training=True)
                return self.task_loss(y, outputs, sample_weight)

        _, gradient = kernels.value_and_gradient(loss_of, embedded)
        moved = embedded + adversarial_step(gradient, self.epsilon)
        return loss + self.weight * loss_of(moved)


@contextlib.contextmanager
def _calling(layer, call):
    """Inside, the layer computes something else.

    In this thread alone: `tf.distribute` runs each replica in its own, on the
    same layers.
    """
    here = threading.get_ident()
    calls = _CALLS.setdefault(id(layer), {})
    calls[here] = call

    def call_of_thread(*args, **kwargs):
        chosen = calls.get(threading.get_ident())
        if chosen is None:
            chosen = _own_call(layer)
        return chosen(*args, **kwargs)

    layer.__dict__["call"] = call_of_thread
    try:
        yield
    finally:
        del calls[here]
        if not calls:
            del layer.__dict__["call"]
            del _CALLS[id(layer)]


def _own_call(layer):
    return functools.partial(type(layer).call, layer)
