"""The language model looks back alone, remembers through memory alone, and is the same in pieces of any length."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttm_jax.text.model import make_model
from ttm_jax.text.sampling import begin_segment, close_segment, feed, open_segment

N, T, V = 4, 4, 11
OPTIONS = {
    "transformer": {"kind": "transformer"},
    "both": {},
    "memory": {"context": "memory", "gate": "fixed", "write": "erase_add"},
    "outputs": {"context": "outputs", "lower_layers": 2},
    "nothing written": {"write": "none"},
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def compiled(make_tiny):
    """`compiled(name)` gives a model, its variables, and its jitted call of tokens, a state and starts."""

    @cache
    def make(name):
        model, variables = make_tiny(**OPTIONS[name])

        @jax.jit
        def apply(tokens_BxTxN, state, start_BxT):
            return model.apply(variables, tokens_BxTxN, state, start_BxT)

        def call(tokens_BxTxN, state=None, start_BxT=None):
            state = model.initial_state(len(tokens_BxTxN)) if state is None else state
            return apply(
                tokens_BxTxN, state, np.zeros(tokens_BxTxN.shape[:2], bool) if start_BxT is None else start_BxT
            )

        return model, variables, call

    return make


@pytest.mark.parametrize("name", OPTIONS)
def test_no_token_sees_a_later_one(name, compiled, tokens):
    """To the bit: change one token of any segment and place, and nothing before it changes."""
    *_, apply = compiled(name)
    tokens_2xTxN = tokens(2, T, N)
    before = np.asarray(apply(tokens_2xTxN)[0]).reshape(2, T * N, V)
    for place in range(T * N):
        changed = tokens_2xTxN.copy().reshape(2, -1)
        changed[0, place] = (changed[0, place] + 1) % V
        after = np.asarray(apply(changed.reshape(2, T, N))[0]).reshape(2, T * N, V)
        assert np.array_equal(after[0, :place], before[0, :place])
        assert not np.array_equal(after[0, place], before[0, place])
        assert np.array_equal(after[1], before[1])  # rows are independent


def gradients(model, variables, tokens_1xTxN, start_1xT):
    """The largest gradient of a target's logits by the embedding of each token: [targets, tokens]."""
    embedding = variables["params"]["embed"]["embedding"]

    @jax.jit
    @jax.jacrev
    def by_inputs(inputs_SxD):
        # Each token has an embedding of its own, so that its gradient is apart; the head stays as it is.
        params = {**variables["params"], "embed": {"embedding": jnp.concatenate([inputs_SxD, embedding])}}
        wide = make_model(model.config, len(inputs_SxD) + V)
        own = jnp.arange(len(inputs_SxD), dtype=jnp.int32).reshape(tokens_1xTxN.shape)
        found, _ = wide.apply({"params": params}, own, None, start_1xT)
        return found.reshape(len(inputs_SxD), -1)[:, -V:]

    return np.abs(by_inputs(embedding[tokens_1xTxN.reshape(-1)])).max(axis=(1, 3))


@pytest.mark.parametrize("name", OPTIONS)
def test_what_reaches_a_token(name, compiled, tokens):
    """Itself, what the windows reach, and all before where memory carries it on; nothing across a start."""
    model, variables, _ = compiled(name)
    start = np.arange(2 * T) == 2 * T - 2
    found = gradients(model, variables, tokens(1, 2 * T, N), start[None])
    begins = (2 * T - 2) * N
    assert (found[begins:, :begins] == 0).all()
    found = found[:begins, :begins]
    distance = np.subtract.outer(np.arange(begins), np.arange(begins))
    assert (found[distance < 0] == 0).all()
    assert (found[(distance >= 0) & (distance < N)] > 0).all()
    layers = model.config.decoder_layers
    window = layers * (N - 1)
    if name in ("both", "memory"):
        assert (found[distance >= 0] > 0).all()
    elif name == "transformer":
        assert (found[distance > window] == 0).all()
    elif name == "nothing written":  # the outputs of the step before look one segment further back
        assert (found[distance > window + 2 * N] == 0).all()


@pytest.mark.parametrize("name", ["transformer", "both", "memory"])
def test_a_document_after_another_is_the_document_alone(name, compiled, tokens):
    """To the bit, with the state that it leaves."""
    *_, apply = compiled(name)
    tokens_2xTxN = tokens(2, T, N)
    start_2xT = np.tile(np.arange(T) == 2, (2, 1))
    _, dirty = apply(tokens_2xTxN)
    found, state = apply(tokens_2xTxN, dirty, start_2xT)
    other = tokens(2, T, N, seed=1)
    other[:, 2:] = tokens_2xTxN[:, 2:]
    expected, state_of_other = apply(other, None, start_2xT)
    np.testing.assert_array_equal(found[:, 2:], expected[:, 2:])
    jax.tree.map(np.testing.assert_array_equal, state, state_of_other)
    assert not np.array_equal(found[:, :2], expected[:, :2])


def assert_same(found, expected, tolerance=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


@pytest.mark.parametrize("name", ["transformer", "both", "memory"])
def test_segments_in_pieces(name, compiled, tokens):
    *_, apply = compiled(name)
    tokens_2xTxN = tokens(2, 2 * T, N)
    first, state = apply(tokens_2xTxN[:, :T])
    second, state = apply(tokens_2xTxN[:, T:], state)
    found, carried = [], None
    for piece in np.split(tokens_2xTxN, T, axis=1):  # of two segments each
        logits, carried = apply(piece, carried)
        found.append(logits)
    assert_same(jnp.concatenate(found, axis=1), jnp.concatenate([first, second], axis=1))
    assert_same(carried, state)


@pytest.mark.parametrize("name", ["transformer", "both", "outputs"])
def test_token_by_token(name, compiled, tokens):
    """Over three ends of segments, however the first began; and the state at the end is that of whole segments."""
    model, variables, apply = compiled(name)
    tokens_2xTxN = tokens(2, T, N)
    expected, state = apply(tokens_2xTxN)
    flat = tokens_2xTxN.reshape(2, -1)
    for opened in (1, N - 1, N):
        beginning = np.where(np.arange(N)[None] < opened, flat[:, :N], 0)
        first, place = open_segment(model, variables, beginning, opened, model.initial_state(2))
        found = [first[:, :opened]]
        for i in range(opened, T * N):
            place = close_segment(model, variables, place) if place.tokens == N else place
            logits, place = feed(model, variables, flat[:, i : i + 1], 1, place)
            found.append(logits)
        assert_same(jnp.concatenate(found, axis=1).reshape(expected.shape), expected)
        assert place.tokens == N
    ended = close_segment(model, variables, place)
    assert_same(ended.state, state)
    assert_same(ended.context, begin_segment(model, variables, state).context)


def test_bfloat16_keeps_memory_in_float32_and_is_the_same_in_pieces(make_tiny, tokens):
    model, variables = make_tiny("bfloat16")
    apply, tokens_1xTxN = jax.jit(model.apply), tokens(1, 2 * T, N)
    logits, state = apply(variables, tokens_1xTxN[:, :T], model.initial_state(1))
    assert state.window[0].keys.dtype == jnp.bfloat16
    assert logits.dtype == state.memory.dtype == np.float32
    assert not np.array_equal(logits, logits.astype(jnp.bfloat16)), "not rounded"
    again, ended = apply(variables, tokens_1xTxN[:, T:], state)
    whole, at_once = apply(variables, tokens_1xTxN, model.initial_state(1))
    assert jax.tree.map(jnp.shape, ended) == jax.tree.map(jnp.shape, at_once)
    np.testing.assert_allclose(np.float32(again), np.float32(whole[:, T:]), atol=0.1)


def test_segments_of_another_length_are_refused(make_tiny, tokens):
    model, variables = make_tiny()
    with pytest.raises(ValueError, match=r"tokens must be \[B, T, 4\], got shape \(1, 2, 3\)"):
        model.apply(variables, tokens(1, 2, 3))
