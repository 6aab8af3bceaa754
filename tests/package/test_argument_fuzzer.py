"""Call every public constructor and pure function with wrong arguments.

A call may succeed if the annotations allow its arguments, and then its config
is plain JSON that builds the same object. Otherwise, it must raise a ValueError
or TypeError that names an argument and the received value.
"""

import json
import warnings

import argument_cases
import argument_fuzzing as fuzzing
import numpy as np
import pytest

import keras_moe
from keras_moe import callbacks, compress, distribution, export, training

LAYERS = argument_cases.layers()
OBJECTS = argument_cases.plain_objects()
FUNCTIONS = argument_cases.functions()
MODELS = argument_cases.whole_models()
ALL = {**LAYERS, **OBJECTS, **FUNCTIONS, **MODELS}


def outcome(call, arguments):
    """Return the result of a call, and the exception that it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(**fuzzing.filled(arguments)), None
        except Exception as error:
            return None, error


def fault_of(call, valid, replaced):
    """Return the fault of a call with replaced arguments, or None."""
    parameters = fuzzing.parameters_of(call)
    result, error = outcome(call, {**valid, **replaced})
    if error is not None:
        text = str(error)
        named = any(f"`{name}`" in text for name in parameters)
        if isinstance(error, (ValueError, TypeError)) and named:
            return None if "Received" in text else f"no `Received`: {text}"
        return f"{type(error).__name__}: {text}"
    for name, value in replaced.items():
        if not fuzzing.is_allowed(name, parameters[name], value):
            return "accepted"
    if hasattr(result, "get_config") and not any(
        callable(value) for value in replaced.values()
    ):
        return config_fault(result)
    return None


def config_fault(instance):
    """Return the fault of a config, which must be JSON of an equal object."""
    try:
        config = instance.get_config()
        text = json.dumps(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = type(instance).from_config(json.loads(text)).get_config()
    except Exception as error:
        return f"config: {type(error).__name__}: {error}"
    same = json.dumps(again, sort_keys=True) == json.dumps(
        config, sort_keys=True
    )
    return None if same else "the config of the copy differs"


def fuzz(names, number, seed):
    """Return the faults of `number` calls with one or two wrong arguments."""
    rng, faults = np.random.default_rng(seed), {}
    for _ in range(number):
        name = names[rng.integers(len(names))]
        call, valid = ALL[name]
        fuzzed = fuzzing.fuzzed_names(call, valid)
        if not fuzzed:
            continue
        count = min(1 + int(rng.random() < 0.25), len(fuzzed))
        chosen = rng.choice(fuzzed, count, replace=False)
        replaced = {str(one): fuzzing.junk(rng) for one in chosen}
        fault = fault_of(call, valid, replaced)
        if fault is not None:
            faults[name, str(replaced)] = fault[:300]
    return faults


def listed(faults):
    return "\n".join(f"{key}: {fault}" for key, fault in faults.items())


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ALL)
def test_the_cases_are_accepted(name):
    """The fuzzer replaces arguments of calls that succeed."""
    call, valid = ALL[name]
    result, error = outcome(call, valid)
    assert error is None
    if name in LAYERS:
        assert config_fault(result) is None


@pytest.mark.parametrize(
    "names",
    [LAYERS, OBJECTS, FUNCTIONS],
    ids=["layers", "objects", "functions"],
)
def test_wrong_arguments_are_named(names):
    faults = fuzz(list(names), 1000, seed=0)
    assert not faults, listed(faults)


def test_wrong_arguments_of_models_are_named():
    faults = fuzz(list(MODELS), 150, seed=0)
    assert not faults, listed(faults)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [LAYERS, OBJECTS, FUNCTIONS, MODELS],
    ids=["layers", "objects", "functions", "models"],
)
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_many_wrong_arguments_are_named(names, seed):
    number = 200 if names is MODELS else 2000
    faults = fuzz(list(names), number, seed)
    assert not faults, listed(faults)


def arguments_of_kind(*kinds):
    """Return pairs of a case and an argument with one of the annotations."""
    return [
        (name, argument)
        for name, (call, valid) in ALL.items()
        for argument in fuzzing.fuzzed_names(call, valid)
        if fuzzing.parameters_of(call)[argument].annotation in kinds
    ]


def misspelled(text):
    return [text[:-1], text + "s", text[1:], text.upper(), f" {text}", ""]


def test_misspelled_choices_are_refused():
    checked = 0
    for name, argument in arguments_of_kind(str):
        call, valid = ALL[name]
        if name in MODELS or argument in fuzzing.ANY_TEXT:
            continue
        for choice in fuzzing.CHOICES[argument]:
            for wrong in misspelled(choice):
                fault = fault_of(call, valid, {argument: wrong})
                assert fault is None, (name, argument, wrong, fault)
                checked += 1
    assert checked > 200


def test_booleans_must_be_booleans():
    found = arguments_of_kind(bool)
    assert len(found) > 50
    for name, argument in found:
        call, valid = ALL[name]
        for wrong in ("False", "no", 0, 1, None, [], np.int64(1)):
            fault = fault_of(call, valid, {argument: wrong})
            assert fault is None, (name, argument, wrong, fault)


def test_numpy_scalars_become_plain_values():
    checked = 0
    for call, valid in LAYERS.values():
        parameters = fuzzing.parameters_of(call)
        for argument in fuzzing.fuzzed_names(call, valid):
            value = valid.get(argument, parameters[argument].default)
            if type(value) not in (int, float, bool):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                given = {**valid, argument: np.array(value)[()]}
                config = call(**fuzzing.filled(given)).get_config()
            assert type(config.get(argument, value)) in (int, float, bool)
            json.dumps(config)
            checked += 1
    assert checked > 150


@pytest.mark.parametrize("name", LAYERS)
def test_misspelled_names_are_refused_and_suggested(name):
    call, valid = ALL[name]
    for argument in fuzzing.parameters_of(call):
        if argument in fuzzing.NOT_FUZZED or argument in valid:
            continue
        wrong = argument + "x"
        _, error = outcome(call, {**valid, wrong: 1})
        assert isinstance(error, ValueError)
        assert f"`{wrong}` must be left out" in str(error)
        assert f"Did you mean `{argument}`?" in str(error)


@pytest.mark.parametrize(
    "case, foreign, ours",
    [
        ("MoEBlock", "hidden_dim", "intermediate_dim"),
        ("MoEBlock", "units", "intermediate_dim"),
        ("MoEBlock", "k", "top_k"),
        ("MoEBlock", "num_selected", "top_k"),
        ("MoEBlock", "num_experts_per_tok", "top_k"),
        ("MoEBlock", "moe_intermediate_size", "intermediate_dim"),
        ("HierarchicalMoE", "aux_loss_coef", "load_balancing_weight"),
        ("Router", "scoring_func", "scoring"),
        ("Router", "norm_topk_prob", "normalize_weights"),
        ("Expert", "dropout_rate", "dropout"),
        ("TransformerEncoderBlock", "num_kv_heads", "num_key_value_heads"),
    ],
)
def test_foreign_names_suggest_ours(case, foreign, ours):
    call, valid = ALL[case]
    _, error = outcome(call, {**valid, foreign: 2})
    assert isinstance(error, ValueError)
    assert f"`{foreign}`" in str(error) and f"`{ours}`?" in str(error)


def test_a_subclass_may_have_its_own_arguments():
    class Named(keras_moe.MoEBlock):
        def __init__(self, *args, **kwargs):
            self.scale = kwargs.pop("scale")
            super().__init__(*args, **kwargs)

    class Two(keras_moe.SwitchRouter):
        def __init__(self, num_experts, top_k=1, **kwargs):
            super().__init__(num_experts, **kwargs)

    assert Named(4, 8, scale=3).scale == 3
    assert Two(4, top_k=1).top_k == 1
    with pytest.raises(ValueError, match="`scal` must be left out"):
        Named(4, 8, scale=3, scal=2)


TOOLS = {
    "find_blocks": (lambda: callbacks.find_blocks("x"), "model"),
    "save_model": (lambda: distribution.save_model("x", "a.keras"), "model"),
    "save_model path": (
        lambda: distribution.save_model(argument_cases.classifier(), 3),
        "path",
    ),
    "load_backup": (lambda: distribution.load_backup("x", "saves"), "model"),
    "data_parallel": (lambda: distribution.data_parallel("x"), "model"),
    "fully_sharded": (
        lambda: distribution.data_parallel(
            argument_cases.classifier(), "False"
        ),
        "fully_sharded",
    ),
    "shard_experts": (lambda: distribution.shard_experts("x"), "model"),
    "gather_experts": (lambda: distribution.gather_experts(3), "model"),
    "local_shard": (lambda: distribution.local_shard(3), "data"),
    "contiguous": (
        lambda: distribution.local_shard([1, 2], contiguous="False"),
        "contiguous",
    ),
    "shard": (lambda: distribution.local_shard([1, 2], shard=2), "shard"),
    "rest": (lambda: distribution.local_shard([1, 2], rest="dorp"), "rest"),
    "launch": (lambda: distribution.launch(3), "script"),
    "hosts": (lambda: distribution.launch(__file__, hosts="abc"), "hosts"),
    "port": (lambda: distribution.launch(__file__, port="x"), "port"),
    "restarts": (
        lambda: distribution.launch(__file__, restarts="x"),
        "restarts",
    ),
    "search_space": (lambda: training.search_space(3), "hp"),
    "top_k": (
        lambda: training.search_space(fuzzing.Thing(), top_k=(0, 1)),
        "top_k",
    ),
    "space": (lambda: training.hypermodel(len, num_expert=(2,)), "num_expert"),
    "merge_experts": (lambda: compress.merge_experts(3, 2), "model"),
    "by": (
        lambda: compress.merge_experts(
            argument_cases.classifier(), 2, by="outptu"
        ),
        "by",
    ),
    "lent_banks": (
        lambda: keras_moe.SoftMoE(2, 4, lent_banks=np.array([1, 2])),
        "lent_banks",
    ),
    "export": (lambda: export.export(3, "new_folder"), "model"),
    "format": (
        lambda: export.export(
            argument_cases.classifier(), "new_folder", "tflite"
        ),
        "format",
    ),
    "verify": (
        lambda: export.export(
            argument_cases.classifier(), "new", verify="False"
        ),
        "verify",
    ),
    "load": (lambda: export.load(3), "path"),
    "threads": (lambda: export.load("artifact", threads="x"), "threads"),
    "expert_parallel": (
        lambda: distribution.ExpertParallel("x"),
        "layout_map",
    ),
    "bootstrap": (
        lambda: keras_moe.Ensemble([argument_cases.built_model()]).fit_members(
            np.zeros((2, argument_cases.D)), bootstrap="False"
        ),
        "bootstrap",
    ),
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_name_wrong_arguments(name):
    call, argument = TOOLS[name]
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert f"`{argument}` must" in str(raised.value)
    assert "Received" in str(raised.value)


@pytest.mark.parametrize("value", [None, False])
def test_no_load_balancing_names_its_weight(value):
    with pytest.raises(ValueError, match="load_balancing_weight=0.0"):
        keras_moe.MoEBlock(4, 8, load_balancing=value)


def test_arguments_of_keras_are_checked_too():
    for argument, wrong in (
        ("trainable", "False"),
        ("autocast", "no"),
        ("dtype", "float23"),
        ("activity_regularizer", "l3"),
    ):
        with pytest.raises(ValueError, match=f"`{argument}` must.*Received"):
            keras_moe.MoEBlock(4, 8, **{argument: wrong})
    for argument, ours in (("lr", "learning_rate"), ("betta_1", "beta_1")):
        with pytest.raises(ValueError, match=f"Did you mean `{ours}`"):
            training.FusedAdam(**{argument: 0.1})


def test_a_set_has_no_order():
    """Experts may be in any order, but names and kinds may not."""
    rows = [{1, 0}, frozenset({3, 2})]
    router = keras_moe.ModalityRouter(4, 2, experts_of_modality=rows)
    config = router.get_config()["experts_of_modality"]
    assert json.loads(json.dumps(config)) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="`modalities` must be a list"):
        keras_moe.ModalityEmbedding({"text", "image"})
    with pytest.raises(ValueError, match="`kinds` must be a list"):
        keras_moe.UncertaintyWeighting(1, {"regression"})
