"""Tokens: numbers and problems to tokens and back."""

import numpy as np
import pytest

from ttm_jax.multiplication import vocab
from ttm_jax.multiplication.problems import encode_answers
from ttm_jax.multiplication.vocab import (
    EOS_TOKEN,
    PAD_TOKEN,
    TIMES_TOKEN,
    number_to_tokens,
    tokens_to_answer,
    tokens_to_string,
)


def test_the_thirteen_tokens():
    assert vocab.VOCAB_SIZE == 13
    assert [*vocab.DIGIT_TOKENS, TIMES_TOKEN, EOS_TOKEN, PAD_TOKEN] == list(range(13))


@pytest.mark.parametrize(("number", "tokens"), [(42, [4, 2]), (0, [0]), (7, [7]), (1000, [1, 0, 0, 0])])
def test_number_to_tokens(number, tokens):
    assert number_to_tokens(number) == tokens
    assert number_to_tokens(np.int64(number)) == tokens


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        number_to_tokens(-1)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([4, 2], "42"),
        (np.array([4, 2]), "42"),
        ([1, 2, TIMES_TOKEN, 3], "12×3"),
        ([4, 2, EOS_TOKEN, 7, TIMES_TOKEN], "42"),
        ([4, PAD_TOKEN, 2, PAD_TOKEN], "42"),
        ([EOS_TOKEN], ""),
        ([], ""),
    ],
)
def test_tokens_to_string(tokens, text):
    assert tokens_to_string(tokens) == text


@pytest.mark.parametrize("token", [13, -1])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=rf"token must be in 0\.\.12, got {token}"):
        tokens_to_string([1, token])


@pytest.mark.parametrize("number", [0, 7, 10, 100, 1203, 99999 * 99999])
def test_answers_round_trip(number):
    assert tokens_to_answer(encode_answers(np.array([number]))[0]) == number


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [EOS_TOKEN],  # no digits
        [4, 2],  # no EOS
        [4, PAD_TOKEN, EOS_TOKEN],
        [4, TIMES_TOKEN, 2, EOS_TOKEN],
        [2, 0, EOS_TOKEN],  # 02
        [0, 0, EOS_TOKEN],
    ],
)
def test_what_is_no_number(tokens):
    assert tokens_to_answer(tokens) is None


def test_an_answer_ends_at_the_first_eos():
    assert tokens_to_answer([2, 4, EOS_TOKEN, EOS_TOKEN, PAD_TOKEN, TIMES_TOKEN]) == 42
