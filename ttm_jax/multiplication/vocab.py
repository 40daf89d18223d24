"""The 13 tokens of the multiplication task, and numbers to tokens and back."""

from collections.abc import Iterable, Sequence

VOCAB_SIZE = 13
DIGIT_TOKENS = range(10)
TIMES_TOKEN = 10
EOS_TOKEN = 11
PAD_TOKEN = 12

_SYMBOLS = {**{digit: str(digit) for digit in DIGIT_TOKENS}, TIMES_TOKEN: "×"}


def number_to_tokens(number: int) -> list[int]:
    """Return the digits of a number, most significant first: `number_to_tokens(42) == [4, 2]`.

    Raises:
        ValueError: if `number` is negative.
    """
    if number < 0:
        raise ValueError(f"number must not be negative, got {number}")
    return [int(digit) for digit in str(int(number))]


def tokens_to_string(tokens: Iterable[int]) -> str:
    """Write the text of tokens up to the first EOS, padding left out: `tokens_to_string([4, 2]) == "42"`.

    Raises:
        ValueError: if a token is not in the vocabulary.
    """
    text = []
    for token in map(int, tokens):
        if token == EOS_TOKEN:
            break
        if token == PAD_TOKEN:
            continue
        if token not in _SYMBOLS:
            raise ValueError(f"token must be in 0..{VOCAB_SIZE - 1}, got {token}")
        text.append(_SYMBOLS[token])
    return "".join(text)


def tokens_to_answer(tokens: Sequence[int]) -> int | None:
    """Read the number written least significant digit first up to EOS; None where it is no number.

    An answer without EOS, without digits, with other tokens among the digits, or with a leading
    zero (`[2, 0, EOS]`) is no number.
    """
    digits = []
    for token in map(int, tokens):
        if token == EOS_TOKEN:
            break
        if token not in DIGIT_TOKENS:
            return None
        digits.append(token)
    else:
        return None
    if not digits or (len(digits) > 1 and digits[-1] == 0):
        return None
    return int("".join(map(str, reversed(digits))))
