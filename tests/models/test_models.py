"""Test what every model does, and what its arguments change."""

import inspect

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from keras import ops
from model_zoo import (
    COMMON,
    MODELS,
    TEXT,
    S,
    V,
    batch_of,
    compile_model,
    compiled,
    outputs_of,
)

import keras_moe
from keras_moe import Expert, MoEBlock, models

EXPENSIVE = BACKEND == "jax"  # to compile a program
ALL_PARTS = "MoESeq2Seq"  # has an encoder and a decoder


def some(*names):
    """Parametrize by all models, or by `names` if compiling is expensive."""
    names = names if EXPENSIVE else tuple(MODELS)
    return pytest.mark.parametrize("name", names)


@some("MoEVisionClassifier", ALL_PARTS)
def test_it_learns_saves_and_loads(name, rng, tmp_path):
    model = compile_model(MODELS[name](seed=1))
    inputs, labels = batch_of(name, rng)
    history = model.fit(inputs, labels, epochs=15, batch_size=16, verbose=0)
    losses = history.history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert type(again) is type(model)
    assert again.get_config() == model.get_config()
    for one, other in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    if EXPENSIVE:
        return
    tensors = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    one, other = (to_numpy(m(tensors)) for m in (again, model))
    np.testing.assert_array_equal(one, other)


@some(ALL_PARTS)
def test_half_precision_has_float32_logits(name, rng):
    """The policy comes from the argument, and not from the global one."""
    model = MODELS[name](dtype="mixed_bfloat16")
    inputs, _ = batch_of(name, rng, 2)
    inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    outputs = compiled(model)(inputs)
    dtype = keras.backend.standardize_dtype
    assert dtype(outputs.dtype) == dtype(model.output.dtype) == "float32"
    assert np.isfinite(to_numpy(outputs)).all()
    assert model.moe_blocks[0].compute_dtype == "bfloat16"
    again = type(model).from_config(model.get_config())
    assert again.moe_blocks[0].compute_dtype == "bfloat16"


@some(ALL_PARTS)
def test_more_padding_changes_nothing(name, rng):
    if "Vision" in name:
        pytest.skip("an image has no padding")
    model = MODELS[name]()
    inputs, _ = batch_of(name, rng, 4)
    wider = keras.tree.map_structure(
        lambda ids: np.pad(ids, [(0, 0), (0, 3)]), inputs
    )
    one, other = outputs_of(model, inputs), outputs_of(model, wider)
    if one.ndim == 3:
        ids = inputs["decoder_token_ids"] if "Seq" in name else inputs
        one, other = one[ids != 0], other[:, :S][ids != 0]
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_text_of_padding_alone_is_finite():
    model = MODELS["MoEClassifier"]()
    assert np.isfinite(outputs_of(model, np.zeros((1, S), "int32"))).all()


@pytest.mark.parametrize("name", ["MoETagger", "MoELanguageModel"][EXPENSIVE:])
def test_padding_counts_in_no_loss(name, rng):
    """`evaluate` returns the mean cross-entropy of the real tokens.

    Keras divides the sum by the number of tokens that count.
    """
    model = compile_model(MODELS[name]())
    ids, labels = batch_of(name, rng, 4)
    logits = outputs_of(model, ids).astype("float64")
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    own = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    found = model.evaluate(ids, labels, verbose=0)
    assert found == pytest.approx(own[ids != 0].mean(), rel=1e-4)


def active_products(model):
    """Return the multiplications per token in the kernels of experts."""
    total = 0
    for layer in model._flatten_layers():
        if isinstance(layer, MoEBlock):
            experts = kernels(layer.experts)
            total += experts * layer.router.top_k // layer.num_experts
            total += kernels(layer.shared_expert)
        elif isinstance(layer, Expert) and layer.num_experts == 1:
            shared = layer.name == "shared_expert"  # counted with its block
            total += 0 if shared else kernels(layer)
    return total


def kernels(layer):
    weights = [] if layer is None else layer.trainable_weights
    return sum(int(np.prod(w.shape)) for w in weights if len(w.shape) == 3)


@pytest.mark.parametrize(
    "options",
    [{}, {"gated": True, "shared_expert_dim": 5}, {"top_k": 1, "moe_every": 2}],
    ids=["plain", "gated, shared", "every other"],
)
def test_the_dense_twin_has_equal_active_flops(options):
    options = {"num_layers": 2, **options}
    moe = MODELS["MoETagger"](**options)
    dense = MODELS["MoETagger"](**options, num_experts=None)
    assert len(moe.moe_blocks) == 2 // options.get("moe_every", 1)
    assert not dense.moe_blocks
    assert active_products(moe) == active_products(dense) > 0
    matrices = 3 if options.get("gated") else 2
    width = options.get("top_k", 2) * 6 + options.get("shared_expert_dim", 0)
    assert active_products(dense) == 2 * matrices * 8 * width


def test_moe_every_takes_the_last_of_each():
    model = MODELS["MoETagger"](num_layers=5, moe_every=2)
    kinds = [
        type(layer.moe).__name__
        for layer in model.layers
        if hasattr(layer, "moe")
    ]
    assert kinds == ["Expert", "MoEBlock", "Expert", "MoEBlock", "Expert"]


def test_each_block_has_a_copy_of_the_router():
    router = keras_moe.SwitchRouter(3, jitter=0.1, seed=4)
    model = MODELS["MoETagger"](num_layers=2, router=router)
    first, second = (block.router for block in model.moe_blocks)
    assert type(first) is type(second) is keras_moe.SwitchRouter
    assert first.jitter == second.jitter == 0.1
    assert first.seed != second.seed
    assert first.kernel is not second.kernel
    assert not router.built
    twin = MODELS["MoETagger"](router=router, num_experts=None)
    assert active_products(twin) == active_products(
        MODELS["MoETagger"](top_k=1, num_experts=None)
    )


@pytest.mark.skipif(EXPENSIVE, reason="the model runs uncompiled")
def test_a_router_by_ids_gets_the_token_ids(rng):
    """The hash of the ids determines how many rows each expert gets."""
    model = MODELS["MoETagger"](router=keras_moe.HashRouter(3, seed=2))
    again = type(model).from_config(model.get_config())
    assert isinstance(again.moe_blocks[0].router, keras_moe.HashRouter)
    ids, _ = batch_of("MoETagger", rng, 2)
    block = model.moe_blocks[0]
    inputs = rng.normal(size=(*ids.shape, 8)).astype("float32")
    _, wanted = block(
        inputs,
        router_inputs=ops.convert_to_tensor(ids),
        mask=ids != 0,
        return_assignment=True,
    )
    seen = []
    experts = block.experts.call
    block.experts.call = lambda x, group_sizes, **kw: (
        seen.append(to_numpy(group_sizes)) or experts(x, group_sizes, **kw)
    )
    model(ops.convert_to_tensor(ids))  # not compiled, to record group sizes
    index = to_numpy(wanted.expert_index)
    np.testing.assert_array_equal(seen[0], np.bincount(index, minlength=4)[:3])


def test_untied_weights_are_a_matrix_more():
    tied, untied = (
        MODELS["MoELanguageModel"](tie_weights=tie) for tie in (True, False)
    )
    more = untied.count_params() - tied.count_params()
    assert more == V * COMMON["hidden_dim"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MODELS["MoETagger"](num_heads=3), "`num_heads` divides"),
        (lambda: MODELS["MoETagger"](positions="none"), "`positions` must be"),
        (lambda: MODELS["MoETagger"](moe_every=2), "`moe_every` must be at"),
        (
            lambda: MODELS["MoETagger"](num_heads=8),
            "`rotary` must be False if the width of a head",
        ),
        (
            lambda: models.MoETagger(0, 3, 12, **COMMON),
            "`vocabulary_size` must be",
        ),
        (
            lambda: models.MoEVisionClassifier((5, 4, 1), 2, 3, **COMMON),
            "multiples of `patch_size`",
        ),
        (
            lambda: models.MoEClassifier(num_classes=0, **TEXT, **COMMON),
            "`num_classes` must be",
        ),
        (
            lambda: MODELS["MoEClassifier"]()(np.ones((1, 13), "int32")),
            "`inputs` must have at most `max_length` tokens",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        models.MeanPooling(name="a"),
        models.PositionEmbedding(7, name="b"),
        models.TokenEmbedding(5, 4, tie_weights=False, name="c"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_parts_have_their_configs(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.one_backend
@pytest.mark.parametrize("name", MODELS)
def test_the_arguments_of_blocks_are_arguments_of_each_model(name):
    model = getattr(models, name)
    own = inspect.signature(model).parameters
    of_blocks = inspect.signature(models.Blocks).parameters
    for argument, parameter in of_blocks.items():
        assert own[argument].annotation == parameter.annotation
        if argument != "dtype":  # positional, as in every model of Keras
            assert own[argument].kind is inspect.Parameter.KEYWORD_ONLY
        if (name, argument) != ("MoEVisionClassifier", "positions"):
            assert own[argument].default == parameter.default
    for argument, parameter in own.items():
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
        assert f"\n    {argument}: " in inspect.getdoc(model)


@pytest.mark.one_backend
@pytest.mark.parametrize("name", MODELS)
def test_a_model_suggests_the_name_of_a_misspelled_argument(name):
    for wrong, ours in (
        ("num_layer", "num_layers"),
        ("ffn_dim", "intermediate_dim"),
        ("k", "top_k"),
        ("n_heads", "num_heads"),
        ("trainabel", "trainable"),
    ):
        message = f"`{wrong}` must be left out: {name} has.*mean `{ours}`"
        with pytest.raises(ValueError, match=message):
            MODELS[name](**{wrong: 2})


@pytest.mark.one_backend
def test_a_subclass_of_a_model_passes_arguments_on():
    class Scaled(models.MoETagger):
        def __init__(self, **kwargs):
            self.scale = kwargs.pop("scale")
            super().__init__(**kwargs)

    model = Scaled(num_tags=4, scale=3, **TEXT, **COMMON)
    assert model.scale == 3
    assert [block.num_experts for block in model.moe_blocks] == [3]
