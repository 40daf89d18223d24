"""A trace as text."""

import io

import pytest
from rich.console import Console

from ttm_jax.multiplication.demo.terminal import answer_line, column_text, render
from ttm_jax.multiplication.demo.trace import trace


@pytest.fixture
def text():
    """What a terminal of 80 columns without colours shows."""

    def show(*parts):
        console = Console(width=80, file=io.StringIO())
        for part in parts:
            console.print(part)
        return console.file.getvalue()

    return show


def test_every_step_has_its_line(multiplier, text):
    result = trace(multiplier, 123, 45)
    shown = text(answer_line(result), render(result))
    assert "123 × 45 = " in shown
    assert "wrong, it is 5535" in shown
    assert "beyond anything in training" in shown
    assert "3·4+2·5+1 = 23" in shown
    for step, place in enumerate(("units", "tens")[: len(result.tokens_T)]):
        assert f"{step + 1} {place}" in shown
        assert f"{100 * result.probabilities_T[step]:.1f} %" in shown
        carry = result.carry_probabilities_TxC[step]
        assert f"{carry.argmax()} at {100 * carry.max():.0f} %" in shown
    assert "The memory over the steps, 6 tokens" in shown
    assert "a cell is a token" in shown


def test_the_longest_fits_a_terminal(make_multiplier, text):
    result = trace(make_multiplier(read="mlp", write="mlp", memory_size=96, process_size=16), 99999, 99999)
    shown = text(render(result))
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    steps = len(result.tokens_T)
    for step in range(steps):
        lines = [line for line in shown.splitlines() if line.startswith(f"{step + 1:>2} ")]
        assert len(lines) == 3, "a line in each block"
    assert "a cell is 3 tokens" in shown


def test_the_sums_of_each_product(make_multiplier, text):
    """Of the longest, which fits a terminal too."""
    result = trace(make_multiplier(schedule="product", carry_head=True), 99999, 99999)
    shown = text(render(result))
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    terms, held = result.terms(4), result.held_sums(4)
    assert len(terms) == len(held) == 5
    line = " ".join(f"+9·9 = {number}{'' if right else ' ✗'}" for number, right in held)
    lines = [line.rstrip() for line in shown.splitlines() if line.startswith(" 5 ")]
    assert f" 5  {result.carry_in(4)} {line}" in lines
    assert len(lines) == 4, "a line in each block"
    assert "a line is the mean over the machine steps of its column" in shown


def test_a_step_that_is_one_machine_step(multiplier, text):
    shown = text(render(trace(multiplier, 123, 45)))
    assert "the mean over" not in shown


def test_what_is_not_there_is_not_shown(make_multiplier, text):
    bare = text(render(trace(make_multiplier(read="mlp", write="erase_add", carry_head=False), 12, 34)))
    assert "it holds" not in bare
    assert "the sum that it held" not in bare
    assert "new after the step" not in bare
    products = text(render(trace(make_multiplier(schedule="product", carry_head=False), 12, 34)))
    assert "the sum that it held" not in products
    assert "a line is the mean over the machine steps" in products


def test_columns_by_hand(multiplier):
    result = trace(multiplier, 99, 9)
    assert [column_text(result, step) for step in range(min(2, len(result.tokens_T)))] == ["9·9 = 81", "9·9+8 = 89"][
        : len(result.tokens_T)
    ]
