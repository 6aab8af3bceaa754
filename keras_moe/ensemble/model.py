"""Several models as one Keras model.

B batch, M members, C classes (or values).
"""

import inspect

import keras
import numpy as np
from keras import ops

from keras_moe import _keras, checks
from keras_moe.ensemble import arguments, diversity, members, training
from keras_moe.ensemble.snapshots import fit_snapshots
from keras_moe.layers.argument_names import check_names
from keras_moe.layers.trainable_parts import TrainableParts


@keras.saving.register_keras_serializable(package="keras_moe")
class Ensemble(TrainableParts, keras.Model):
    """Combines the outputs of several models.

    The members need not be alike, and need not be mixtures of experts; their
    outputs must have one shape. Train them first, each by itself
    (`fit_members`, or before they come here), then evaluate; `"weighted"` and
    `"stacking"` learn in between, by `fit` on data that the members have not
    seen. Members are frozen then: they run with `training=False`, are not
    updated, and add no losses.

    | method | output | `fit` |
    |---|---|---|
    | `"mean"` | mean of the outputs as they are, logits of logits | nothing |
    | `"soft_vote"` | mean of the class probabilities | nothing |
    | `"hard_vote"` | share of the members that vote for a class | nothing |
    | `"median"` | median of the probabilities, divided by its sum | nothing |
    | `"weighted"` | mean of the probabilities, learned convex weights | M |
    | `"stacking"` | `meta_model` of the probabilities (Wolpert 1992) | it |
    | `"snapshot"` | as `"soft_vote"` (Huang et al. 2017) | the members |

    Where `fit` learns nothing it raises an error that says what to do. Of
    equal outputs a member's hard vote goes to the first; a tie of votes stays
    a tie, two classes of the same share. Outputs with one column are the
    probability of the second of two classes. Where the medians are all zero,
    the mean is taken. All but `"mean"` turn logits into probabilities, so the
    ensemble's loss is one of probabilities. Outputs are float32.

    Args:
        models: list of built Keras models with one output `(B, ..., C)` each.
            Dicts of inputs may differ: each member takes the keys it knows.
            For `"snapshot"` one model: it is trained and is the last member.
        method: one of the table.
        from_logits: whether the members give logits, not probabilities.
        regression: whether they give values that are no probabilities: these
            are not renormalised, and stacking works on them as they are. The
            two votes need classes.
        meta_model: for `"stacking"`, a Keras model or layer of the members'
            probabilities (or values) side by side, `(B, ..., M * C)`. None is
            `StackingHead(M)`, which starts as their mean.
        num_snapshots: M of `"snapshot"`; 3 to 6 are common.
        train_members: whether `fit` trains the members together through the
            combined output, with `training=True` and their own balance
            losses, instead of freezing them. Not for `"hard_vote"`, which has
            no gradient, nor `"snapshot"`.
        **kwargs: `name`, `trainable`.

    Attributes:
        models: the members' models, in order.
        combiner: the layer that combines them.

    Raises:
        ValueError: for no models, one given twice, unlike outputs, inputs
            that nothing tells, an unknown method, or arguments that do not go
            with it.

    A mask does not pass through an ensemble: weigh padding by
    `sample_weight`. As a layer of another model an ensemble's members count as
    trainable weights: set `ensemble.trainable = False` there.

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
        models,
        method: str = "mean",
        from_logits: bool = False,
        regression: bool = False,
        meta_model=None,
        num_snapshots: int | None = None,
        train_members: bool = False,
        **kwargs,
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

    @property
    def models(self) -> list[keras.Model]:
        """The members' models, in order."""
        return [member.model for member in self.members]

    def fit(self, x=None, y=None, batch_size=None, epochs=1, **kwargs):
        """Learns what the method has to learn; see the class.

        `"weighted"` and `"stacking"` learn on `x` and `y`, which the members
        should not have seen: every step runs all of them, so that a large
        `batch_size` saves time. `"snapshot"` trains one model in
        `num_snapshots` cycles of a cosine learning rate and keeps the weights
        at the end of each; `epochs` must be a multiple of it, and the figures
        in `History` are those of the one model.

        Args:
            x, y, batch_size, epochs, **kwargs: of `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: where there is nothing to learn.
        """
        options = {"batch_size": batch_size, "epochs": epochs, **kwargs}
        if self.method == "snapshot":
            return fit_snapshots(self, x, y, **options)
        if self.trainable_variables:
            return super().fit(x, y, **options)
        raise ValueError(
            "`fit` has nothing to learn: the members are frozen and this "
            f"method has no weights. Received: method={self.method!r}, "
            f"train_members={self.train_members}, trainable={self.trainable}. "
            "Call `fit_members(x, y)` to train each member, `evaluate` to use "
            "them, or choose method='weighted' or 'stacking'; "
            "`train_members=True` trains them together."
        )

    def fit_members(
        self,
        x,
        y=None,
        bootstrap: bool = False,
        seed: int | None = None,
        **kwargs,
    ) -> list[keras.callbacks.History]:
        """Trains each member by itself.

        A member that is not compiled is compiled as the ensemble is, with an
        optimizer of its own.

        Args:
            x, y: data as of `keras.Model.fit`.
            bootstrap: whether each member gets N of the N samples, drawn with
                replacement (bagging, Breiman 1996); for arrays.
            seed: int; member m trains, and draws, after
                `keras.utils.set_random_seed(seed + m)`. None leaves the
                random state alone. Two runs are equal if the models are built
                afresh. Initial weights are older than the seed: build the
                members with different ones.
            **kwargs: of `keras.Model.fit`.

        Returns:
            A list of `keras.callbacks.History`, one a member.

        Raises:
            ValueError: for `"snapshot"`, a member that nothing says how to
                compile, or a bootstrap of anything but arrays.
        """
        if self.method == "snapshot":
            raise ValueError(
                "`fit_members` must not be called where the members are "
                "snapshots of one training. Received: method='snapshot'. Call "
                "`fit`."
            )
        checks.check_bool("bootstrap", bootstrap)
        checks.check_seed(seed)
        return training.fit_members(self, x, y, bootstrap, seed, **kwargs)

    def predict_members(self, x, **kwargs) -> np.ndarray:
        """Returns each member's outputs.

        Args:
            x: data as of `keras.Model.predict`.
            **kwargs: of `keras.Model.predict`.

        Returns:
            Array `(M, N, ..., C)`.
        """
        return np.stack(
            [m.model.predict(m.own_inputs(x), **kwargs) for m in self.members]
        )

    def diversity(self, x, y, **kwargs) -> dict[str, float]:
        """Returns how far the members' mistakes differ, means over the pairs.

        Args:
            x: data as of `keras.Model.predict`.
            y: labels, int `(N, ...)` or `(N, ..., 1)`, or one-hot
                `(N, ..., C)`.
            **kwargs: of `keras.Model.predict`.

        Returns:
            A dict of `disagreement`, `q_statistic` and `double_fault`; see
            `keras_moe.ensemble.disagreement` and its neighbours.

        Raises:
            ValueError: for regression, or labels that fit no output.
        """
        if self.regression:
            raise ValueError(
                "`diversity` must be asked of classifiers: it counts right and "
                "wrong. Received: regression=True. Compare "
                "`predict_members(x)`."
            )
        outputs = self.predict_members(x, **kwargs)
        correct = diversity.is_correct(outputs, y, self.from_logits)
        return {
            measure.__name__: diversity.mean_over_pairs(measure(correct))
            for measure in (
                diversity.disagreement,
                diversity.q_statistic,
                diversity.double_fault,
            )
        }

    def member_weights(self) -> np.ndarray:
        """Returns the learned weights of `"weighted"`, float32 `(M,)`.

        They are above 0 and sum to 1.

        Raises:
            ValueError: for another method.
        """
        if self.method == "weighted":
            return ops.convert_to_numpy(self.combiner.member_weights())
        raise ValueError(
            "`member_weights` must be asked of method='weighted'. Received: "
            f"method={self.method!r}. The others have none."
        )

    @property
    def trainable_variables(self) -> list:
        """The combiner's; the members' too with `train_members`."""
        if self.train_members:
            return super().trainable_variables
        return self.combiner.trainable_variables if self.trainable else []

    @property
    def trainable_weights(self) -> list:
        """The combiner's; the members' too with `train_members`."""
        if self.train_members:
            return super().trainable_weights
        return self.combiner.trainable_weights if self.trainable else []

    @property
    def non_trainable_variables(self) -> list:
        """All others, random states included."""
        return _without(self.variables, self.trainable_variables)

    @property
    def non_trainable_weights(self) -> list:
        """All others."""
        return _without(self.weights, self.trainable_weights)

    @property
    def losses(self) -> list:
        """The combiner's; the members' too with `train_members`."""
        # While JAX computes the loss, Keras keeps the losses of the call here.
        if self.train_members or _keras.has_losses_of_step(self):
            return super().losses
        return self.combiner.losses

    def get_config(self) -> dict:
        """Returns the arguments that build this model again."""
        meta_model = self.meta_model
        if meta_model is not None:
            meta_model = _serialize(meta_model)
        return {
            "name": self.name,
            "trainable": self.trainable,
            **self.trainable_config(),
            "models": [_serialize(model) for model in self.models],
            "method": self.method,
            "from_logits": self.from_logits,
            "regression": self.regression,
            "meta_model": meta_model,
            "num_snapshots": self.num_snapshots,
            "train_members": self.train_members,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects=None):
        """Builds the model that `get_config` describes."""

        def build(part):
            return keras.saving.deserialize_keras_object(
                part, custom_objects=custom_objects
            )

        models = [build(model) for model in config["models"]]
        meta_model = config["meta_model"] and build(config["meta_model"])
        return cls(**{**config, "models": models, "meta_model": meta_model})


_OF_MODEL = ("name", "trainable", "trainable_parts")
_NAMES = (*inspect.signature(Ensemble.__init__).parameters, *_OF_MODEL)


def _serialize(model):
    """Returns a member's config, without how it was compiled.

    A `.keras` file may be loaded on another backend, and without the losses
    that the members were trained with.
    """
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    return config


def _without(variables, others):
    known = {id(variable) for variable in others}
    return [v for v in variables if id(v) not in known]
