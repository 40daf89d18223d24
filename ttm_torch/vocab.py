"""The 13 tokens of the multiplication task: the same as `ttm_jax.vocab`, which needs no framework."""

from ttm_jax.vocab import (
    DIGIT_TOKENS,
    EOS_TOKEN,
    PAD_TOKEN,
    TIMES_TOKEN,
    VOCAB_SIZE,
    answer_to_tokens,
    number_to_tokens,
    problem_to_tokens,
    tokens_to_answer,
    tokens_to_string,
)

__all__ = [
    "DIGIT_TOKENS",
    "EOS_TOKEN",
    "PAD_TOKEN",
    "TIMES_TOKEN",
    "VOCAB_SIZE",
    "answer_to_tokens",
    "number_to_tokens",
    "problem_to_tokens",
    "tokens_to_answer",
    "tokens_to_string",
]
