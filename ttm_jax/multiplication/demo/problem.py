"""What people type: a product as text."""

import re

from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.problems import MAX_DIGITS, Length, is_held_out
from ttm_jax.multiplication.task import make_dataset

EXAMPLE = "123*45"
_RANGE = f"from 0 to {10**MAX_DIGITS - 1}"
_SIGN = r"\s*[*x×·]\s*"
_PRODUCT = re.compile(rf"([0-9]+){_SIGN}([0-9]+)\s*=?", re.IGNORECASE)
_SHOWN = 24  # characters of a text that is no product


class ProblemError(ValueError):
    """A text that is no product of two numbers that fit; the message is one line."""


def parse_problem(text: str) -> tuple[int, int]:
    """Read the operands of "123*45", "123 x 45" or "123×45".

    Raises:
        ProblemError: saying what is wrong with the text and what would be right.
    """
    text = " ".join(text.split())
    if not text:
        raise ProblemError(f"nothing to multiply; type a product such as {EXAMPLE}")
    match = _PRODUCT.fullmatch(text)
    if match is None:
        raise ProblemError(_complaint(text))
    numbers = [number.lstrip("0") or "0" for number in match.groups()]
    for number in numbers:
        if len(number) > MAX_DIGITS:
            raise ProblemError(f"{_shorten(number)} has {len(number)} digits, too many: the numbers are {_RANGE}")
    a, b = map(int, numbers)
    return a, b


def _complaint(text: str) -> str:
    if re.search(r"[-−]\s*[0-9]", text):
        return f"negative numbers and differences are not for this network: two numbers {_RANGE}, such as {EXAMPLE}"
    if re.search(r"[0-9][.,][0-9]", text):
        return f"whole numbers only, without separators: two numbers {_RANGE}, such as {EXAMPLE}"
    if re.fullmatch(rf"[0-9]+({_SIGN}[0-9]+){{2,}}", text, re.IGNORECASE):
        return f"one product at a time: two numbers {_RANGE}, such as {EXAMPLE}"
    return f"{_shorten(text)!r} is no product: type two numbers {_RANGE}, such as {EXAMPLE}"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def was_trained(config: Config, a: int, b: int) -> str:
    """Say whether a run of this config can have seen the pair: "held out", "too long" or "possible".

    "too long" is a pair of operands that no stage of the run reaches: longer or larger than any that it samples.
    """
    data, curriculum = config.data, config.curriculum
    dataset = make_dataset(config, data.batch_size, curriculum.start_stage)
    last = max(curriculum.start_stage, curriculum.last_stage)
    stages = range(curriculum.start_stage, last + 1)
    length = Length(*sorted((len(str(a)), len(str(b))), reverse=True))
    largest = max(data.stages[stage][1] for stage in stages)
    if max(a, b) > largest or all(length not in dataset.lengths(stage) for stage in stages):
        return "too long"
    return "held out" if is_held_out(a, b) else "possible"
