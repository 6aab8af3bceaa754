"""Train a student model with the outputs of a trained teacher.

B batch, C classes, D hidden_dim, T tokens, E experts.
"""

import threading
from typing import Any, Self

import keras
from keras import ops

from keras_moe import _keras, checks
from keras_moe.compress import pairs, soft_labels
from keras_moe.layers.added_losses import in_floatx
from keras_moe.model_surgery.observe import Call, computing_once, watching
from keras_moe.model_surgery.partly_trained import PartlyTrained
from keras_moe.model_surgery.rebuild import uncompiled_config
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class Distiller(PartlyTrained, Wrapper):
    """Train a student on labels and on the outputs of a teacher.

    The loss of a training batch is `(1 - alpha) * L(y, student) + alpha *
    t^2 KL(teacher || student)`, plus the differences of hidden states (FitNets,
    Romero et al. 2015, eq. 3) and of router probabilities that `hidden` and
    `router` select, plus the losses that the student's layers add.
    `sample_weight` applies to labels and soft labels. In evaluation the loss is
    the compiled loss alone, or without one the loss of the soft labels. Either
    model may be a mixture of experts.

    The teacher is frozen: it runs with `training=False`, gets no gradients,
    and adds no losses. Its `trainable` flags do not change. The student shares
    its weights with this model: save it by itself after training.

    Reference: Hinton et al. 2015, section 2, eq. 1.

    Args:
        student: Built model.
        teacher: Built, trained model with the same inputs.
        temperature: float above 0. t. At larger values the probabilities of the
            wrong classes have more weight. Defaults to 2; 2 to 5 are common.
        alpha: float in 0 ... 1. Weight of the soft labels. Defaults to 0.5.
            With 1, neither labels nor a compiled loss are needed: `fit(x)`.
            With 0, the outputs of the models may have any shape.
        hidden: List of names, dict of names, or None. Layers whose outputs the
            student is to match, by name, by path, or by the end of a path: a
            list of names that both models have, or a dict from the student's
            names to the teacher's. If the widths of two layers differ, this
            model learns a projection of the student's states. `None` (the
            default) matches none.
        hidden_weight: float of 0 or above. Weight of the mean squared
            difference of each pair of layers. Defaults to 1.
        router: bool, or dict of names. `True` matches the router probabilities
            of the blocks in the order of the layers; numbers of blocks and
            experts must be equal. A dict maps the names of the student's blocks
            to the teacher's. `False` (the default) matches none.
        router_weight: float of 0 or above. Weight of the mean KL divergence of
            each pair of routers. Defaults to 1.
        from_logits: bool. Whether the outputs of both models are logits.
            `False` (the default) means probabilities.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: If an argument is out of its range; if a layer is not found
            or is not unique; if two routers have different numbers of experts;
            or, in training, if outputs differ in shape, or if `alpha` is below
            1 and there are no labels or no compiled loss.

    Example:

    ```python
    def network(width):
        return keras.Sequential(
            [
                keras.Input((16,)),
                keras.layers.Dense(width, activation="relu", name="hidden"),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )


    student, teacher = network(8), network(64)  # train the teacher first
    model = keras_moe.compress.Distiller(student, teacher, hidden=["hidden"])
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.random.normal(size=(32, 16))
    model.fit(x, np.random.randint(3, size=32))  # trains `student`
    ```
    """

    arguments = (
        "temperature",
        "alpha",
        "hidden",
        "hidden_weight",
        "router",
        "router_weight",
        "from_logits",
    )
    wraps = "student"

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        temperature: float = 2.0,
        alpha: float = 0.5,
        hidden: list[str] | dict[str, str] | None = None,
        hidden_weight: float = 1.0,
        router: bool | dict[str, str] = False,
        router_weight: float = 1.0,
        from_logits: bool = False,
        **kwargs: Any,
    ):
        super().__init__(student, **kwargs)
        pairs.check_models(student, teacher)
        self.teacher = teacher
        self.temperature = checks.check_above(
            "temperature", temperature, 0, float("inf")
        )
        self.alpha = checks.check_weight("alpha", alpha)
        if self.alpha:
            checks.check_above("alpha", alpha, 0, 1)
        self.hidden = pairs.check_hidden(hidden)
        self.hidden_weight = checks.check_weight("hidden_weight", hidden_weight)
        self.router = pairs.check_router(router)
        self.router_weight = checks.check_weight("router_weight", router_weight)
        self.from_logits = checks.check_bool("from_logits", from_logits)
        self.soft_labels = soft_labels.SoftLabelLoss(
            self.temperature, self.from_logits
        )
        self._hidden_pairs = pairs.hidden_pairs(student, teacher, hidden)
        self._router_pairs = pairs.router_pairs(student, teacher, router)
        self.projections = [
            pairs.projection(*pair, number)
            for number, pair in enumerate(self._hidden_pairs)
        ]
        self._passing = threading.local()

    @property
    def student(self) -> keras.Model:
        """The model that is trained."""
        return self.inner

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's outputs, and keep the states to compare."""
        if not training:
            return self.inner(inputs, training=training)
        with watching(self._watched(0)) as seen:
            outputs = self.inner(inputs, training=True)
        self._passing.seen = seen
        return outputs

    def _watched(self, side: int) -> list[keras.layers.Layer]:
        """Return the layers of the student (0) or the teacher (1) to watch."""
        return [p[side] for p in (*self._hidden_pairs, *self._router_pairs)]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the scalar loss of a batch; see the class."""
        has_labels = y is not None and _keras.compiled_loss_of(self) is not None
        if not training and has_labels:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if has_labels:
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            if self.alpha:
                task = self.task_loss(y, y_pred, sample_weight)
                loss = loss - self.alpha * task
        else:
            pairs.check_no_labels(self.alpha, y, _keras.compiled_loss_of(self))
            loss = sum(self.losses)
        once = computing_once(self.teacher)
        with self.no_trace(), once, watching(self._watched(1)) as seen:
            targets = self.teacher(x, training=False)
        if self.alpha:
            pairs.check_outputs(targets, y_pred)
            targets = ops.stop_gradient(targets)
            soft = self.soft_labels(targets, y_pred, sample_weight)
            loss = loss + self.alpha * soft
        if not training:
            return loss
        inner = self._inner_losses(self._passing.__dict__.pop("seen"), seen)
        return loss + in_floatx(inner)

    def _inner_losses(
        self,
        of_student: dict[int, list[Call]],
        of_teacher: dict[int, list[Call]],
    ) -> Tensor:
        """Return the differences of hidden states and router probabilities."""
        total = ops.zeros((), dtype="float32")
        for (own, other), projection in zip(
            self._hidden_pairs, self.projections, strict=True
        ):
            states = pairs.only_states(of_student, own)
            targets = pairs.only_states(of_teacher, other)
            if projection is not None:
                states = projection(states)
            pairs.check_states(states, targets, own)
            loss = soft_labels.hidden_loss(ops.stop_gradient(targets), states)
            total = total + self.hidden_weight * loss
        for own, other in self._router_pairs:
            call = pairs.only_call(of_student, own)
            target = pairs.only_call(of_teacher, other).outputs.router_probs
            loss = soft_labels.router_loss(
                ops.stop_gradient(target),
                call.outputs.router_probs,
                call.kwargs.get("mask"),
            )
            total = total + self.router_weight * loss
        return total

    def _trained_layers(self) -> list[keras.layers.Layer]:
        """Return the student and the projections."""
        return [self.inner, *(p for p in self.projections if p is not None)]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this model again."""
        models = {"student": self.inner, "teacher": self.teacher}
        return {
            **super().get_config(),
            **{name: uncompiled_config(x) for name, x in models.items()},
        }

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the model that `get_config` describes."""
        teacher = keras.saving.deserialize_keras_object(
            config["teacher"], custom_objects=custom_objects
        )
        return super().from_config(
            {**config, "teacher": teacher}, custom_objects
        )


def distill(
    student: keras.Model,
    teacher: keras.Model,
    temperature: float = 2.0,
    alpha: float = 0.5,
    hidden: list[str] | dict[str, str] | None = None,
    hidden_weight: float = 1.0,
    router: bool | dict[str, str] = False,
    router_weight: float = 1.0,
    from_logits: bool = False,
) -> Distiller:
    """Return a `Distiller` with these arguments, to be compiled and fitted.

    Raises:
        ValueError: If `Distiller` raises it.

    Example:

    ```python
    def network(width):
        return keras.Sequential(
            [
                keras.Input((16,)),
                keras.layers.Dense(width, activation="relu"),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )


    student, teacher = network(8), network(64)  # train the teacher first
    distiller = keras_moe.compress.distill(student, teacher, temperature=3.0)
    distiller.compile("adam", "sparse_categorical_crossentropy")
    distiller.fit(
        np.random.normal(size=(32, 16)), np.random.randint(3, size=32)
    )
    ```
    """
    return Distiller(
        student,
        teacher,
        temperature=temperature,
        alpha=alpha,
        hidden=hidden,
        hidden_weight=hidden_weight,
        router=router,
        router_weight=router_weight,
        from_logits=from_logits,
    )
