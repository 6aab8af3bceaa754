"""Train on adversarial steps in the space of embeddings.

B batch; an embedding is `(B, ...)`.
"""

import threading
from typing import Any

import keras
from keras import ops

from keras_moe import _keras, checks, kernels
from keras_moe.checks import is_static
from keras_moe.model_surgery.observe import calling, watching
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Tensor

LEAST_NORM = 1e-12


def adversarial_step(gradient: Tensor, epsilon: float) -> Tensor:
    """Return `epsilon * g / ||g||_2`, with the norm over each example.

    Args:
        gradient: float `(B, ...)`. g.
        epsilon: float of 0 or above. Length of the step.

    Returns:
        Tensor of the shape and dtype of `gradient`. It is zero for an example
        with the gradient zero.

    Raises:
        ValueError: If `epsilon` is a number below 0, or not finite.

    Example:

    ```python
    gradient = keras.random.normal((8, 5, 16))
    step = keras_moe.training.adversarial_step(gradient, epsilon=1.0)
    ```
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
    """Train a model on its embeddings and on adversarial ones.

    This is the fast gradient method on embeddings. With g the gradient of the
    loss with respect to the embeddings e of an example, the loss is
    `L(e) + weight * L(e + r)`, with the constant `r = epsilon * g / ||g||_2`.
    The paper also normalizes the embeddings, which is left to the model.

    In evaluation, the loss is `L(e)` alone. The losses that layers add, such as
    load-balancing losses, and their statistics count once. A step costs about
    three steps without it. In `mixed_float16` small gradients become zero; use
    `mixed_bfloat16` instead.

    Reference: Miyato et al. 2017, "Adversarial Training Methods for
    Semi-Supervised Text Classification", section 3, after Goodfellow et al.
    2015.

    Args:
        model: Keras model that calls `embedding` once.
        embedding: Layer inside `model`, or its name. Its output `(B, ...)`, one
            row per example, is moved.
        epsilon: float of 0 or above. Length of the move. Defaults to 1, a start
            for embeddings with a standard deviation near 1.
        weight: float of 0 or above. Weight of the second loss. Defaults to 1.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range; if
            `embedding` is not the name of exactly one layer inside `model`; or,
            in training, if the model calls that layer several times or not at
            all, or has no compiled loss.

    Example:

    ```python
    classifier = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            keras.layers.Embedding(100, 16, name="words"),
            keras_moe.MoEBlock(4, 32),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = keras_moe.training.FGM(classifier, embedding="words")
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.random.randint(100, size=(32, 12))
    model.fit(x, np.random.randint(3, size=32))  # trains `classifier`
    ```
    """

    arguments = ("embedding", "epsilon", "weight")

    def __init__(
        self,
        model: keras.Model,
        embedding: str | keras.layers.Layer,
        epsilon: float = 1.0,
        weight: float = 1.0,
        **kwargs: Any,
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

    def _find_embedding(self) -> keras.layers.Layer:
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

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the outputs of the model inside, and keep the embeddings."""
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
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the scalar loss of a batch; see the class."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        embedded = self._passing.__dict__.pop("embedded")
        layer = self._find_embedding()

        def loss_of(embedded: Tensor) -> Tensor:
            with self.no_trace(), calling(layer, lambda *_, **__: embedded):
                outputs = self.inner(x, training=True)
                return self.task_loss(y, outputs, sample_weight)

        _, gradient = kernels.value_and_gradient(loss_of, embedded)
        moved = embedded + adversarial_step(gradient, self.epsilon)
        return loss + self.weight * loss_of(moved)
