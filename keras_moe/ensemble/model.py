"""Several models as one Keras model.

B batch, M members, C classes (or values), N samples.
"""

import inspect
from typing import Any, Self

import keras

from keras_moe import _keras, checks
from keras_moe.ensemble import arguments, members, training
from keras_moe.ensemble.reports import MemberReports
from keras_moe.ensemble.snapshots import fit_snapshots
from keras_moe.layers.argument_names import check_names
from keras_moe.layers.trainable_parts import TrainableParts
from keras_moe.model_surgery.partly_trained import PartlyTrained
from keras_moe.model_surgery.rebuild import uncompiled_config


@keras.saving.register_keras_serializable(package="keras_moe")
class Ensemble(PartlyTrained, MemberReports, TrainableParts, keras.Model):
    """Combine the outputs of several models.

    The members may be any models with outputs of one shape. Train them first,
    each by itself, by `fit_members` or before they are passed. `"weighted"` and
    `"stacking"` then learn by `fit` on data that the members were not trained
    on, while the members are frozen: they run with `training=False`, are not
    updated, and add no losses.

    | method | output | trained by `fit` |
    |---|---|---|
    | `"mean"` | mean of the outputs; of logits, if they are logits | nothing |
    | `"soft_vote"` | mean of the class probabilities | nothing |
    | `"hard_vote"` | share of the members that vote for a class | nothing |
    | `"median"` | median of the probabilities, divided by its sum | nothing |
    | `"weighted"` | convex combination of the probabilities | M weights |
    | `"stacking"` | `meta_model` of the probabilities | `meta_model` |
    | `"snapshot"` | mean of the class probabilities | the members |

    If a method trains nothing, `fit` raises an error. A member votes for the
    first of its largest outputs; classes with the same number of votes get the
    same share. Outputs with one column are the probability of the second of
    two classes. If the medians are all zero, the mean is taken. All methods but
    `"mean"` turn logits into probabilities, so that the ensemble needs a loss
    of probabilities. Outputs are float32.

    A mask does not pass through an ensemble: exclude padding by
    `sample_weight`. If an ensemble is a layer of another model, the members
    count as trainable weights of that model: set `ensemble.trainable = False`.

    Reference: Wolpert 1992 (stacking), Huang et al. 2017 (snapshots).

    Args:
        models: List of built Keras models with one output `(B, ..., C)` each.
            Dicts of inputs may have different keys: each member gets its own.
            For `"snapshot"`, one model, which is trained and is the last
            member.
        method: str. A method of the table. Defaults to `"mean"`.
        from_logits: bool. Whether the outputs of the members are logits.
            `False` (the default) means probabilities or values.
        regression: bool. Whether the outputs are values instead of
            probabilities: medians are not divided by their sum, and stacking
            takes the values. Not for the two votes, which need classes.
            Defaults to `False`.
        meta_model: Keras model or layer, or None. For `"stacking"`: maps the
            concatenated probabilities (or values) of the members,
            `(B, ..., M * C)`, to the output. `None` (the default) means
            `StackingHead(M)`, which starts as their mean.
        num_snapshots: Positive int or None. M of `"snapshot"`, required there;
            3 to 6 are common. `None` (the default) for the other methods.
        train_members: bool. Whether `fit` trains the members together through
            the combined output, with `training=True` and their load-balancing
            losses, instead of freezing them. Not for `"hard_vote"`, which has
            no gradient, nor for `"snapshot"`. Defaults to `False`.
        **kwargs: `name`, `trainable`.

    Attributes:
        models: The members' models, in order.
        combiner: The layer that combines the members' outputs.

    Raises:
        ValueError: If `models` is empty or holds a model twice; if outputs
            differ in shape; if no model has symbolic inputs; if `method` is
            unknown; or if an argument cannot be combined with `method`.

    Example:

    ```python
    def network():
        return keras.Sequential(
            [keras.Input((16,)), keras.layers.Dense(3, activation="softmax")]
        )


    ensemble = keras_moe.ensemble.Ensemble([network() for _ in range(3)])
    probabilities = ensemble(keras.random.normal((8, 16)))
    ```
    """

    def __init__(
        self,
        models: list[keras.Model] | keras.Model,
        method: str = "mean",
        from_logits: bool = False,
        regression: bool = False,
        meta_model: keras.layers.Layer | None = None,
        num_snapshots: int | None = None,
        train_members: bool = False,
        **kwargs: Any,
    ):
        check_names(type(self).__name__, kwargs, _NAMES, _OF_MODEL)
        checks.check_bool("trainable", kwargs.get("trainable", True))
        models = members.check_models(models)
        arguments.check_arguments(
            method, from_logits, regression, meta_model, train_members
        )
        models = arguments.with_snapshots(models, method, num_snapshots)
        combiner = arguments.combiner_of(
            method, len(models), from_logits, regression, meta_model
        )
        inputs = members.shared_inputs(models)
        layers = [
            members.Member(model, not train_members, name=f"member_{number}")
            for number, model in enumerate(models)
        ]
        outputs = [layer(inputs) for layer in layers]
        members.check_outputs(models, outputs)
        super().__init__(inputs=inputs, outputs=combiner(outputs), **kwargs)
        self.members = layers
        self.combiner = combiner
        self.method = method
        self.from_logits = bool(from_logits)
        self.regression = bool(regression)
        self.meta_model = meta_model
        self.num_snapshots = checks.check_optional_int(
            "num_snapshots", num_snapshots
        )
        self.train_members = bool(train_members)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Learn the weights of the method; see the class.

        `"weighted"` and `"stacking"` learn on `x` and `y`, which the members
        should not have been trained on. Every step runs all members, so that a
        large `batch_size` saves time. `"snapshot"` trains one model in
        `num_snapshots` cycles of a cosine learning rate and keeps the weights
        at the end of each cycle; `epochs` must be a multiple of
        `num_snapshots`, and `History` holds the metrics of the one model.

        Args:
            x: Inputs as `keras.Model.fit` takes them.
            y: Targets as `keras.Model.fit` takes them.
            batch_size: Positive int or None. Examples per step. `None` (the
                default) means 32 for arrays.
            epochs: Positive int. Number of epochs. Defaults to 1.
            **kwargs: Other arguments of `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: If the method learns nothing, or if `epochs` is no
                multiple of `num_snapshots`.
        """
        options = {"batch_size": batch_size, "epochs": epochs, **kwargs}
        if self.method == "snapshot":
            return fit_snapshots(self, x, y, **options)
        if self.trainable_variables:
            return super().fit(x, y, **options)
        raise ValueError(
            "`fit` needs weights to learn, but the members are frozen and the "
            f"method has none. Received: method={self.method!r}, "
            f"train_members={self.train_members}, trainable={self.trainable}. "
            "Call `fit_members(x, y)` to train each member by itself, choose "
            "method='weighted' or 'stacking', or pass `train_members=True` to "
            "train all members together."
        )

    def fit_members(
        self,
        x: Any,
        y: Any = None,
        bootstrap: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> list[keras.callbacks.History]:
        """Train each member by itself.

        A member that is not compiled is compiled as the ensemble is, with an
        optimizer of its own.

        Args:
            x: Inputs as `keras.Model.fit` takes them.
            y: Targets as `keras.Model.fit` takes them.
            bootstrap: bool. Whether each member is trained on N samples that
                are drawn with replacement from the N samples of the arrays
                (bagging, Breiman 1996). Defaults to `False`.
            seed: int or None. Member m draws and trains after
                `keras.utils.set_random_seed(seed + m)`. `None` (the default)
                does not set a seed. Initial weights do not depend on it, since
                the members exist already: build the members with different
                seeds. Two runs are equal if the models are built anew.
            **kwargs: Other arguments of `keras.Model.fit`.

        Returns:
            A list of `keras.callbacks.History`, one per member.

        Raises:
            ValueError: If the method is `"snapshot"`; if neither a member nor
                the ensemble is compiled, or the ensemble's loss does not apply
                to a member's logits; or if `bootstrap` is `True` and the data
                are not arrays.
        """
        if self.method == "snapshot":
            raise ValueError(
                "`fit_members` must not be called if the members are "
                "snapshots of one training. Received: method='snapshot'. Call "
                "`fit`."
            )
        checks.check_bool("bootstrap", bootstrap)
        checks.check_seed(seed)
        return training.fit_members(self, x, y, bootstrap, seed, **kwargs)

    def _trained_layers(self) -> list[keras.layers.Layer]:
        """Return the combiner; with `train_members` the members, too."""
        members = self.members if self.train_members else []
        return [*members, self.combiner]

    @property
    def losses(self) -> list[Any]:
        """The combiner's losses; with `train_members` the members', too."""
        losses: list[Any] = self.combiner.losses
        # While JAX computes the loss, Keras keeps the losses of the call here.
        if self.train_members or _keras.has_losses_of_step(self):
            losses = super().losses
        return losses

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this model again."""
        meta_model = self.meta_model
        if meta_model is not None:
            meta_model = uncompiled_config(meta_model)
        return {
            "name": self.name,
            "trainable": self.trainable,
            **self.trainable_config(),
            "models": [uncompiled_config(model) for model in self.models],
            "method": self.method,
            "from_logits": self.from_logits,
            "regression": self.regression,
            "meta_model": meta_model,
            "num_snapshots": self.num_snapshots,
            "train_members": self.train_members,
        }

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the model that `get_config` describes."""

        def build(part: dict[str, Any]) -> keras.layers.Layer:
            return keras.saving.deserialize_keras_object(
                part, custom_objects=custom_objects
            )

        models = [build(model) for model in config["models"]]
        meta_model = config["meta_model"] and build(config["meta_model"])
        return cls(**{**config, "models": models, "meta_model": meta_model})


_OF_MODEL = ("name", "trainable", "trainable_parts")
_NAMES = (*inspect.signature(Ensemble.__init__).parameters, *_OF_MODEL)
