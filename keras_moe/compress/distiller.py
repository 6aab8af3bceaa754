"""A student model learns from a trained teacher.

B batch, C classes, D hidden_dim, T tokens, E experts.
"""

import threading

import keras
from keras import ops

from keras_moe import _keras, checks
from keras_moe.compress import pairs, soft_labels
from keras_moe.layers.added_losses import in_floatx
from keras_moe.model_surgery.observe import computing_once, watching
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class Distiller(Wrapper):
    """Trains a student on labels and on what a teacher makes of the inputs.

    The loss of a training batch is `(1 - alpha) * L(y, student) + alpha *
    t^2 KL(teacher || student)` (Hinton et al. 2015, section 2, eq. 1), plus
    the differences of hidden states and of router probabilities that are
    asked for, plus what the student's layers add. In evaluation it is the
    compiled loss alone. Either model may be a mixture of experts.

    The teacher is frozen: it runs with `training=False`, gets no gradients,
    and adds no losses; its `trainable` flags stay as they are. The student
    shares its weights with this model: save it, plainly, when it is trained.

    Args:
        student: a built model.
        teacher: a built, trained model of the same inputs.
        temperature: t, above 0; larger ones show more of what the teacher
            thinks of the wrong classes. 2 to 5 are common.
        alpha: share of the soft labels, 0 to 1. With 1 neither labels nor a
            compiled loss are needed: `fit(x)`. With 0 outputs are free.
        hidden: layers whose outputs the student's are to match (FitNets,
            Romero et al. 2015, eq. 3), by name or by path: a list of names
            that both models have, or a dict from the student's to the
            teacher's. Where widths differ, the student's states pass a
            learned projection, which this model owns.
        hidden_weight: 0 or above, of the mean squared difference of each.
        router: whether each block's router probabilities are to match those
            of the teacher's block in the same place, in the order of the
            layers (numbers of blocks and experts must agree); or a dict of
            blocks as in `hidden`.
        router_weight: 0 or above, of the mean KL divergence of each.
        from_logits: whether both models' outputs are logits; else
            probabilities.
        **kwargs: of `keras.Model`.

    `sample_weight` weighs labels and soft labels.

    Raises:
        ValueError: for an argument out of its range, layers that are not
            found, and in training for outputs of different shapes, no labels
            or no compiled loss where `alpha` is below 1.
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
        student,
        teacher,
        temperature: float = 2.0,
        alpha: float = 0.5,
        hidden=None,
        hidden_weight: float = 1.0,
        router=False,
        router_weight: float = 1.0,
        from_logits: bool = False,
        **kwargs,
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

    def call(self, inputs, training=None):
        """Returns the student's outputs; keeps what is to be compared."""
        if not training:
            return self.inner(inputs, training=training)
        with watching(self._watched(0)) as seen:
            outputs = self.inner(inputs, training=True)
        self._passing.seen = seen
        return outputs

    def _watched(self, side):
        """The layers of the student (0) or the teacher (1) to watch."""
        return [p[side] for p in (*self._hidden_pairs, *self._router_pairs)]

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the scalar loss of a batch; see the class."""
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

    def _inner_losses(self, of_student: dict, of_teacher: dict) -> Tensor:
        """The differences of hidden states and of router probabilities."""
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

    @property
    def trainable_variables(self) -> list:
        """The student's, and the projections'."""
        return [v for x in self._learning() for v in x.trainable_variables]

    @property
    def trainable_weights(self) -> list:
        """The student's, and the projections'."""
        return [w for x in self._learning() for w in x.trainable_weights]

    def _learning(self):
        if not self.trainable:
            return []
        return [self.inner, *(p for p in self.projections if p is not None)]

    @property
    def non_trainable_variables(self) -> list:
        """All others, the teacher's and random states included."""
        return _without(self.variables, self.trainable_variables)

    @property
    def non_trainable_weights(self) -> list:
        """All others, the teacher's included."""
        return _without(self.weights, self.trainable_weights)

    def get_config(self) -> dict:
        """Returns the arguments that build this model again."""
        teacher = keras.saving.serialize_keras_object(self.teacher)
        config = {**super().get_config(), "teacher": teacher}
        for name in ("student", "teacher"):
            config[name].pop("compile_config", None)
        return config

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None):
        """Builds the model that `get_config` describes."""
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
    hidden: list | dict | None = None,
    hidden_weight: float = 1.0,
    router: bool | dict = False,
    router_weight: float = 1.0,
    from_logits: bool = False,
) -> Distiller:
    """Returns a `Distiller`, to be compiled and fitted.

        distiller = distill(student, teacher, temperature=3.0)
        distiller.compile("adam", "sparse_categorical_crossentropy")
        distiller.fit(x, y)
        student.save("student.keras")

    Args:
        student, teacher, temperature, alpha, hidden, hidden_weight, router,
            router_weight, from_logits: of `Distiller`.

    Raises:
        ValueError: as `Distiller` does.
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


def _without(variables, others):
    known = {id(variable) for variable in others}
    return [v for v in variables if id(v) not in known]
