"""Adversarial steps in the space of the embeddings.

B batch; an embedding is `(B, ...)`.
"""

import threading

import keras
from keras import ops

from keras_moe import _keras, checks, kernels
from keras_moe.checks import is_static
from keras_moe.model_surgery.observe import calling, watching
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Tensor

LEAST_NORM = 1e-12


def adversarial_step(gradient: Tensor, epsilon: float) -> Tensor:
    """Returns `epsilon * g / ||g||_2`, the norm over each example.

    Args:
        gradient: float `(B, ...)`, g.
        epsilon: length of the step.

    Returns:
        Like `gradient`; zero where it is.
    """
    if is_static(epsilon):
        checks.check_weight("epsilon", epsilon)
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
        checks.check_is_a(
            "embedding",
            embedding,
            (str, keras.layers.Layer),
            "a layer inside `model`, or its name",
            "Pass, for instance, embedding='embedding'.",
        )
        self.embedding = getattr(embedding, "name", embedding)
        self.epsilon = checks.check_weight("epsilon", epsilon)
        self.weight = checks.check_weight("weight", weight)
        self._passing = threading.local()
        self._find_embedding()

    def _find_embedding(self):
        layers = _keras.every_layer_of(self.inner)
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
        layer = self._find_embedding()
        with watching([layer]) as seen:
            outputs = self.inner(inputs, training=True)
        kept = [call.outputs for call in seen[id(layer)]]
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
            with self.no_trace(), calling(layer, lambda *_, **__: embedded):
                outputs = self.inner(x, training=True)
                return self.task_loss(y, outputs, sample_weight)

        _, gradient = kernels.value_and_gradient(loss_of, embedded)
        moved = embedded + adversarial_step(gradient, self.epsilon)
        return loss + self.weight * loss_of(moved)
