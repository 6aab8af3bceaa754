"""Test that a backup belongs to one configuration, not only to one shape."""

import json

import keras
import pytest
from keras import layers

import keras_moe
from keras_moe.distribution import BackupAndResume, load_backup
from keras_moe.distribution.backup import configurations, generations

pytestmark = pytest.mark.one_backend


@keras.saving.register_keras_serializable(package="test_backup")
class Wrapped(layers.Layer):
    """A user's layer with a block that the layer's config does not contain."""

    def __init__(self, top_k=2, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras_moe.MoEBlock(4, 8, top_k=top_k)

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return layers.Layer.get_config(self)


class Unsaveable(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def make_model(
    top_k=2,
    inner_top_k=2,
    activation="relu",
    rate=0.0,
    frozen=False,
    scale=2.0,
    swapped=False,
    dtype="float32",
    initializer="glorot_uniform",
    remat=False,
    prefix="",
    unsaveable=False,
    batch=None,
):
    """Return a functional model; no argument changes its shapes."""

    def name(text):
        return f"{prefix}_{text}" if prefix else None

    inputs = keras.Input((4,), batch, name=name("in"), dtype="float32")
    block = keras_moe.MoEBlock(
        4,
        8,
        top_k=top_k,
        activation=activation,
        kernel_initializer=initializer,
        remat=remat,
        dtype=dtype,
        name=name("moe"),
    )
    first = layers.Dense(4, name=name("first"), trainable=not frozen)
    second = layers.Dense(4, name=name("second"))
    a, b = (second, first) if swapped else (first, second)
    x = a(block(inputs))
    x = b(layers.Dropout(rate)(x) * scale)
    x = Wrapped(inner_top_k, name=name("wrapped"))(x)
    x = layers.Lambda(lambda x: x + 1, output_shape=(4,))(x)
    x = Unsaveable(keras.ops.abs)(x) if unsaveable else x
    model = keras.Model(inputs, x, name=name("model"))
    model.compile("sgd", "mse")
    return model


def configs_of(**changes):
    found = configurations.layer_configs(make_model(**changes))
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def saved():
    return configs_of(frozen=False)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"top_k": 1}, "`top_k` of MoEBlock is 2 there and 1 here"),
        ({"inner_top_k": 1}, "`top_k` of MoEBlock is 2 there and 1 here"),
        ({"activation": "tanh"}, "'relu' there and 'tanh' here"),
        ({"rate": 0.5}, "`rate` of Dropout is 0.0 there and 0.5 here"),
        ({"frozen": True}, "`trainable` of Dense is True there and False here"),
        ({"scale": 3.0}, "of Functional is 2.0 there and 3.0 here"),
        ({"dtype": "mixed_bfloat16"}, "`dtype.config.name` of MoEBlock"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_changes_of_the_training_are_found(saved, changes, words):
    assert words in configurations.difference(saved, configs_of(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefix": "other"},
        {"initializer": "he_normal"},
        {"remat": True},
        {"batch": 16},
    ],
    ids=lambda value: next(iter(value), "same"),
)
def test_other_changes_are_ignored(saved, changes):
    """Names are ignored, because they count the layers made before."""
    assert configurations.difference(saved, configs_of(**changes)) == ""


def test_a_layer_that_cannot_be_saved_hides_no_other():
    """Keras then makes no config of the model, but configs of its layers."""
    saved = configs_of(unsaveable=True)
    assert ["Unsaveable", None] in saved
    same = configs_of(unsaveable=True, prefix="other")
    assert configurations.difference(saved, same) == ""
    other = configs_of(unsaveable=True, top_k=1)
    assert "`top_k` of MoEBlock" in configurations.difference(saved, other)


def test_connections_are_compared():
    """The layers have the same kinds, shapes, and order."""

    def make(residual):
        inputs = keras.Input((4,))
        x = layers.Dense(4)(inputs)
        y = layers.Dense(4)(x)
        outputs = layers.Add()([y, x if residual else inputs])
        return configurations.layer_configs(keras.Model(inputs, outputs))

    assert configurations.difference(make(True), make(True)) == ""
    found = configurations.difference(make(True), make(False))
    assert "`layers." in found and "of Functional" in found


def test_layers_of_another_kind_and_number():
    def make(*parts):
        model = keras.Sequential([keras.Input((4,)), *parts])
        return configurations.layer_configs(model)

    one = make(layers.ReLU())
    found = configurations.difference(one, make(layers.Softmax()))
    assert found == "ReLU there is Softmax here"
    assert configurations.difference(one, make(layers.ReLU(), layers.ReLU()))


def test_shared_layers_and_several_inputs_are_the_same_again():
    def make():
        a, b = keras.Input((4,)), keras.Input((4,))
        bank = keras_moe.Expert(4, 8)
        one = keras_moe.MoEBlock(experts=bank)
        two = keras_moe.MoEBlock(experts=bank)
        outputs = {"x": one(a), "y": two(b)}
        return configurations.layer_configs(keras.Model([a, b], outputs))

    assert configurations.difference(make(), make()) == ""


def test_a_fit_and_a_load_of_another_model_are_refused(tmp_path, rng):
    x = rng.normal(size=(8, 4)).astype("float32")

    def fit(model, epochs):
        callback = BackupAndResume(tmp_path)
        arguments = {"epochs": epochs, "verbose": 0, "callbacks": [callback]}
        return model.fit(x, x, **arguments).history

    def make(top_k):
        block = keras_moe.MoEBlock(4, 8, top_k=top_k)
        model = keras.Sequential([keras.Input((4,)), block])
        model.compile("sgd", "mse")
        return model

    fit(make(2), 1)
    with pytest.raises(ValueError, match="`top_k` of MoEBlock is 2 there"):
        fit(make(1), 2)
    with pytest.raises(ValueError, match="`top_k` of MoEBlock is 2 there"):
        load_backup(make(1), tmp_path)
    assert len(fit(make(2), 2)["loss"]) == 2
    load_backup(make(2), tmp_path)
    manifest = generations.generations(tmp_path)[0] / "manifest.json"
    manifest.write_text(json.dumps(old(json.loads(manifest.read_text()))))
    with pytest.warns(UserWarning, match="another model of the same shapes"):
        load_backup(make(1), tmp_path)  # an old backup has no configuration


def old(manifest):
    """Return the manifest as the version before checksums wrote it."""
    added = ("schema", "checksum", "layers", "steps")
    return {k: v for k, v in manifest.items() if k not in added}


def test_changes_by_another_callback_are_ignored(tmp_path, rng):
    """The configurations at the beginning of each run are compared."""

    class Anneal(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.layers[0].rate = 0.1 * epoch

    x = rng.normal(size=(8, 4)).astype("float32")

    def fit(epochs):
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dropout(0.5), layers.Dense(4)]
        )
        model.compile("sgd", "mse")
        callbacks = [Anneal(), BackupAndResume(tmp_path)]
        model.fit(x, x, epochs=epochs, verbose=0, callbacks=callbacks)
        return model.layers[0].rate

    assert fit(2) == 0.1
    assert fit(3) == 0.2
