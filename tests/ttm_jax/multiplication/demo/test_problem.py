"""What may be typed, and what is said about the rest."""

import dataclasses

import pytest

from ttm_jax.multiplication.demo.problem import ProblemError, parse_problem, was_trained
from ttm_jax.multiplication.problems import held_out_pairs, is_held_out


@pytest.mark.parametrize(
    "text",
    ["123*45", "123 x 45", "123×45", "123X45", "  123 *45 ", "123 * 45 =", "123·45", "00123*045", "123\t*\u00a045"],
)
def test_products_in_many_spellings(text):
    assert parse_problem(text) == (123, 45)


def test_the_smallest_and_the_largest():
    assert parse_problem("0*0") == (0, 0)
    assert parse_problem("99999*99999") == (99999, 99999)
    assert parse_problem("0" * 5000 + "1*2") == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to multiply; type a product such as 123*45"),
        ("  ", "nothing to multiply"),
        ("hello", "'hello' is no product: type two numbers from 0 to 99999, such as 123*45"),
        ("12", "'12' is no product"),
        ("12*", "'12*' is no product"),
        ("12+3", "'12+3' is no product"),
        ("१२*३", "is no product"),
        ("-12*3", "negative numbers"),
        ("12*-3", "negative numbers"),
        ("12 x − 3", "negative numbers"),
        ("1.5*2", "whole numbers only"),
        ("1,000*2", "whole numbers only"),
        ("2*3*4", "one product at a time"),
        ("123456*2", "123456 has 6 digits, too many: the numbers are from 0 to 99999"),
        ("2*123456", "123456 has 6 digits"),
        ("1" * 9999 + "*2", "has 9999 digits"),
        ("x\ny", "'x y' is no product"),
        ("z" * 9999, "zzz…' is no product"),
    ],
)
def test_the_rest_is_one_helpful_line(text, message):
    with pytest.raises(ProblemError) as caught:
        parse_problem(text)
    said = str(caught.value)
    assert message in said
    assert "\n" not in said
    assert len(said) < 140


def test_what_training_may_have_seen(tiny_config):
    """Up to 2 x 2 digits, below 100."""
    a, b = map(int, held_out_pairs((2, 2), 1)[0])
    assert was_trained(tiny_config, a, b) == was_trained(tiny_config, b, a) == "held out"
    assert not is_held_out(12, 34)
    assert was_trained(tiny_config, 12, 34) == "possible"
    assert was_trained(tiny_config, 7, 8) == "possible"
    assert was_trained(tiny_config, 100, 8) == was_trained(tiny_config, 8, 100) == "too long"


def test_stages_and_their_order_count(tiny_config):
    first_only = dataclasses.replace(tiny_config, curriculum=dataclasses.replace(tiny_config.curriculum, last_stage=0))
    assert was_trained(first_only, 7, 8) == "possible"
    assert was_trained(first_only, 12, 3) == "too long"
    data = dataclasses.replace(tiny_config.data, stages=((0, 9), (0, 19)))
    small = dataclasses.replace(tiny_config, data=data)
    assert was_trained(small, 21, 3) == "too long"
    assert was_trained(small, 12, 3) in ("possible", "held out")
    short = dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, max_digits=(2, 1)))
    assert was_trained(short, 12, 34) == "too long"
