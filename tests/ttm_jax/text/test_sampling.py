"""Which tokens may be drawn, and that draws depend on seed, place and row alone."""

from functools import partial

import jax
import numpy as np
import pytest

from ttm_jax.text.sampling import draw, open_segment, sample

LOGITS = np.log(np.array([[0.05, 0.5, 0.15, 0.3], [0.3, 0.05, 0.5, 0.15]], np.float32))


def drawn(rounds=400, logits=LOGITS, **options):
    """How often each row drew each token."""
    keys = jax.random.split(jax.random.key(0), rounds)
    found = jax.vmap(partial(sample, **options), (0, None))(keys, logits)
    return np.stack([np.bincount(row, minlength=4) for row in np.asarray(found).T]) / rounds


def test_shares_are_those_of_the_logits():
    np.testing.assert_allclose(drawn(4000), np.exp(LOGITS), atol=0.03)
    sharper = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(drawn(4000, temperature=0.5), sharper, atol=0.03)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 0.0, "top_p": 0.9}, {"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}]
)
def test_the_likeliest(options):
    np.testing.assert_array_equal(drawn(20, **options), [[0, 1, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.81}, [1, 2, 3]),
        ({"top_k": 2, "top_p": 0.99}, [1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
    ],
)
def test_what_is_left(options, kept):
    """The fewest of the likeliest tokens whose share is at least p, of the k likeliest."""
    assert np.flatnonzero(drawn(**options)[0]).tolist() == kept


def test_a_row_does_not_depend_on_the_others():
    changed = LOGITS.copy()
    changed[0] = 0
    keys = jax.random.split(jax.random.key(1), 50)
    rows = [jax.vmap(sample, (0, None))(keys, logits)[:, 1] for logits in (LOGITS, changed)]
    np.testing.assert_array_equal(*rows)


def test_pieces_draw_what_the_whole_draws(make_tiny, tokens):
    """Over two ends of segments; and another seed draws something else."""
    model, variables = make_tiny("float32")
    logits, begun = open_segment(model, variables, tokens(2, 4), 3, model.initial_state(2))
    first, key, allowed = logits[:, 2], jax.random.key(0), np.arange(11) != 5

    def pieces(key, *numbers):
        last, place, done, found = first, begun, 0, []
        for number in numbers:
            drawn, last, place = draw(model, variables, last, place, allowed, key, done, number)
            found.append(drawn)
            done += number
        return np.concatenate(found, axis=1)

    whole = pieces(key, 8)
    np.testing.assert_array_equal(pieces(key, 2, 2, 2, 2), whole)
    assert not np.array_equal(pieces(jax.random.key(1), 8), whole)
    assert not np.array_equal(whole[0], whole[1])
    assert not (whole == 5).any()
