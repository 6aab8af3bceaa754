"""Test rotary positions, grouped heads, caches, and the decoder block."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from keras import ops
from model_zoo import compiled

from keras_moe import (
    Expert,
    ExpertChoiceRouter,
    MoEBlock,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    kernels,
)
from keras_moe.layers.transformer import (
    CachedAttention,
    grouped_attention,
    rotate,
)

B, S, D, N = 2, 5, 8, 4
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_rotary_positions_are_the_papers(rng):
    """Rotations follow Su et al. 2021, eq. 34, on interleaved pairs."""
    x, start, half = draw(rng, 1, S, 2, 6), 7, 3
    theta = 10000.0 ** (-2 * np.arange(half) / (2 * half))
    angles = (start + np.arange(S))[:, None] * theta
    cos, sin = (np.repeat(f(angles), 2, axis=-1) for f in (np.cos, np.sin))
    interleaved = np.empty_like(x)
    interleaved[..., 0::2], interleaved[..., 1::2] = (
        x[..., :half],
        x[..., half:],
    )
    partner = np.empty_like(x)
    partner[..., 0::2] = -interleaved[..., 1::2]
    partner[..., 1::2] = interleaved[..., 0::2]
    wanted = interleaved * cos[:, None] + partner * sin[:, None]
    found = to_numpy(rotate(x, start + np.arange(S)))
    np.testing.assert_allclose(found[..., :half], wanted[..., 0::2], **CLOSE)
    np.testing.assert_allclose(found[..., half:], wanted[..., 1::2], **CLOSE)


def test_rotary_products_depend_on_the_distance(rng):
    q, k = draw(rng, 1, 1, 1, 6), draw(rng, 1, 1, 1, 6)

    def product(m, n):
        at = [to_numpy(rotate(x, np.array([p]))) for x, p in ((q, m), (k, n))]
        return float((at[0] * at[1]).sum())

    assert product(3, 1) == pytest.approx(product(42, 40), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(1, 3), abs=1e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_keras_attention(causal, rng):
    x, mask = draw(rng, B, S, D), np.arange(S) < np.array([[S], [3]])
    ours = CachedAttention(N, causal=causal)
    theirs = keras.layers.MultiHeadAttention(N, D // N)
    ours.build((B, S, D))
    theirs.build((B, S, D), (B, S, D))
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        value = draw(rng, *one.shape)
        one.assign(value)
        other.assign(value)
    tensor = ops.convert_to_tensor(x)
    found = compiled(ours, key_mask=mask)(tensor)
    wanted = compiled(
        theirs, attention_mask=mask[:, None], use_causal_mask=causal
    )(tensor, tensor)
    np.testing.assert_allclose(to_numpy(found), to_numpy(wanted), **CLOSE)


def test_grouped_heads_are_repeated_heads(rng):
    query, key, value = draw(rng, B, S, 4, 3), *draw(rng, 2, B, 7, 2, 3)
    readable = rng.random((B, 1, S, 7)) < 0.7
    found = grouped_attention(query, key, value, readable)
    repeated = (np.repeat(x, 2, axis=2) for x in (key, value))
    wanted = grouped_attention(query, *repeated, readable)
    np.testing.assert_allclose(to_numpy(found), to_numpy(wanted), **CLOSE)


def test_attention_by_hand(rng):
    """One head reads two of three keys, as in NumPy."""
    query, key, value = (draw(rng, 1, n, 1, 2) for n in (1, 3, 3))
    scores = (key[0, :, 0] @ query[0, 0, 0] / np.sqrt(2))[:2]
    weights = np.exp(scores) / np.exp(scores).sum()
    found = grouped_attention(query, key, value, np.array([True, True, False]))
    np.testing.assert_allclose(
        to_numpy(found)[0, 0, 0], weights @ value[0, :2, 0], **CLOSE
    )


def test_a_query_without_keys_is_finite(rng):
    x = draw(rng, B, S, D)
    outputs = CachedAttention(N)(x, key_mask=np.zeros((B, S), bool))
    assert np.isfinite(to_numpy(outputs)).all()


def decoder(**options):
    moe = MoEBlock(3, 6, activation="gelu")
    return TransformerDecoderBlock(N, moe, num_key_value_heads=2, **options)


def test_a_cache_gives_the_outputs_of_the_whole_sequence(rng):
    """The block gets two tokens at once, and then one at a time."""
    x, memory = draw(rng, B, S, D), draw(rng, B, 3, D)
    mask = np.array([[True, True, False], [True] * 3])
    block = decoder(cross_attention=True)
    block.build((B, S, D))

    def whole(x, memory):
        return block(x, encoder_outputs=memory, encoder_mask=mask)

    def piece(x, cache, index, read):
        given = {"encoder_cache": read, "encoder_mask": mask}
        return block(x, cache=cache, index=index, **given)

    memory = ops.convert_to_tensor(memory)
    whole, piece = (
        kernels.compiled(f, block.variables) for f in (whole, piece)
    )
    wanted = to_numpy(whole(ops.convert_to_tensor(x), memory))
    cache, read = block.empty_cache(B, S + 2), block.encoder_cache_of(memory)
    assert {tuple(part.shape) for part in cache} == {(B, S + 2, 2, D // N)}
    found = []
    for start, stop in ((0, 2), (2, 3), (3, 4), (4, 5)):
        tokens = ops.convert_to_tensor(x[:, start:stop])
        index = ops.convert_to_tensor(start, dtype="int32")
        part, cache = piece(tokens, cache, index, read)
        found.append(to_numpy(part))
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, **CLOSE)


def test_cross_attention_reads_what_the_mask_leaves(rng):
    x, memory = draw(rng, B, S, D), draw(rng, B, 3, D)
    readable = np.array([[True, True, False]] * B)
    block = decoder(cross_attention=True)

    block.build(x.shape)
    run = kernels.compiled(
        lambda memory: block(x, encoder_outputs=memory, encoder_mask=readable),
        block.variables,
    )

    def outputs(memory):
        return to_numpy(run(ops.convert_to_tensor(memory)))

    masked, seen = memory.copy(), memory.copy()
    masked[:, 2] = 9.0
    seen[:, 1] = 9.0
    np.testing.assert_array_equal(outputs(masked), outputs(memory))
    assert np.abs(outputs(seen) - outputs(memory)).max() > 1e-3


def test_padding_changes_no_other_token(rng):
    x = draw(rng, B, S, D)
    mask = np.arange(S) != 1  # in the middle, where causality hides nothing
    mask = np.tile(mask, (B, 1))
    changed = x.copy()
    changed[:, 1] = 5.0
    for block in (
        decoder(),
        TransformerEncoderBlock(N, Expert(6), rotary=True),
    ):
        block.build(x.shape)
        run = compiled(block, mask=mask)
        one, other = (
            to_numpy(run(ops.convert_to_tensor(y))) for y in (x, changed)
        )
        np.testing.assert_array_equal(one[mask], other[mask])


def test_the_assignment_is_returned(rng):
    x = draw(rng, B, S, D)
    block = decoder()
    outputs, assignment = block(x, return_assignment=True)
    assert outputs.shape == x.shape
    assert assignment.expert_index.shape == (B * S * 2,)
    again = block(x, replay=assignment)
    np.testing.assert_allclose(to_numpy(again), to_numpy(outputs), **CLOSE)
    *_, cache, assignment = block(
        x, cache=block.empty_cache(B, S), return_assignment=True
    )
    assert len(cache) == 2 and assignment.router_probs.shape == (B * S, 3)
    symbolic = block(keras.Input((S, D)), return_assignment=True)
    assert symbolic[1].router_probs.shape == (None, 3)


def test_an_encoder_with_options_has_its_config():
    block = TransformerEncoderBlock(
        4, Expert(6), num_key_value_heads=2, rotary=True
    )
    again = TransformerEncoderBlock.from_config(block.get_config())
    assert (again.num_key_value_heads, again.rotary) == (2, True)
    attention = CachedAttention(4, 2, True, True, False)
    config = CachedAttention.from_config(attention.get_config()).get_config()
    assert config == attention.get_config()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CachedAttention(4, 3), "`num_key_value_heads` must divide"),
        (lambda: CachedAttention(3).build((None, 5, 8)), "`num_heads` divides"),
        (
            lambda: CachedAttention(8, rotary=True).build((None, 5, 8)),
            "`rotary` must be False if the width of a head",
        ),
        (
            lambda: TransformerDecoderBlock(
                2,
                MoEBlock(
                    3,
                    router=ExpertChoiceRouter(3, bidirectional=True),
                    intermediate_dim=6,
                ),
            ),
            "must be causal.*ExpertChoiceRouter",
        ),
        (
            lambda: TransformerDecoderBlock(
                2, MoEBlock(3, 6, capacity_factor=1.0, priority="score")
            ),
            "must not have both priority='score'",
        ),
        (
            lambda: decoder(cross_attention=True)(np.zeros((B, S, D))),
            "`encoder_outputs` must be given",
        ),
        (
            lambda: decoder()(
                np.zeros((B, S, D)), encoder_outputs=np.zeros((B, 3, D))
            ),
            "`encoder_outputs` must be given if, and only if",
        ),
        (
            lambda: of_capacity(np.zeros((B, S, D), "float32")),
            "`cache` must be None if tokens are dropped",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def of_capacity(x):
    moe = MoEBlock(3, 6, eval_capacity_factor=1.0)
    block = TransformerDecoderBlock(2, moe)
    block.build(x.shape)
    block(x, cache=block.empty_cache(B, S))
