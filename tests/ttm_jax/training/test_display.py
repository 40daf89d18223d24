"""What a training shows on a terminal and elsewhere."""

import io
import sys

import pytest
from rich.console import Console

from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.task import MultiplicationTask
from ttm_jax.training.display import LiveDisplay, PlainDisplay, make_display
from ttm_jax.training.loop import Evaluated, Said, Started, Stepped, Trained
from ttm_jax.training.task import Example

TASK = MultiplicationTask(Config())

TRAIN = {
    "step": 50,
    "examples": 50 * 823,
    "loss": 1.25,
    "learning_rate": 2e-3,
    "train_accuracy": {"1x1": 0.5, "2x1": 0.25},
    "mixture": {"1x1": 0.5, "2x1": 0.5},
}
EVAL = {
    "step": 100,
    "seconds": 3725.9,
    "exact_match": {
        "1x1": {"correct": 96, "total": 100},
        "2x1": {"correct": 90, "total": 100},  # its mark is more than 90 %
        "4x4": {"correct": 0, "total": 100},
    },
}
EXAMPLES = [Example("3 × 4 =", "12", "12"), Example("12 × 7 =", "85", "84"), Example("99 × 9 =", "no number", "891")]


def tell(display):
    with display:
        display.show(Said("stage 1: operands from 0 to 19"))
        display.show(Stepped(50, None))
        display.show(Trained(TRAIN))
        display.show(Stepped(51, 1234.5))
        display.show(Trained(TRAIN))
        display.show(Evaluated(EVAL, EXAMPLES))


def test_plain_lines(capsys):
    tell(PlainDisplay(TASK, total_steps=200, line_every_seconds=0.0))
    message, first, second, evaluation, *examples = capsys.readouterr().out.splitlines()
    assert message == "stage 1: operands from 0 to 19"
    assert first == "step 50/200  loss 1.2500  rate 2.00e-03  training exact match %: 1x1 50, 2x1 25"
    assert "  1,234 examples/s  " in second
    assert second.endswith("  1:40 left")  # 150 steps of 823 examples
    assert evaluation == (
        "evaluation at step 100, 1:02:05: 1x1 96.0 % of 100 (mark met), 2x1 90.0 % of 100, 4x4 0.0 % of 100"
    )
    assert examples == ["    3 × 4 = 12  right", "    12 × 7 = 85  wrong, 84", "    99 × 9 = no number  wrong, 891"]


def test_an_example_that_is_neither_right_nor_wrong(capsys, screen):
    for display in (PlainDisplay(TASK, 200), live(screen)):
        with display:
            display.show(Evaluated(EVAL, [Example("once upon", "a time")]))
    for text in (capsys.readouterr().out, screen.getvalue()):
        (line,) = {line.strip() for line in text.splitlines() if "once upon a time" in line}
        assert line == "once upon a time"


def test_plain_lines_are_few(capsys):
    tell(PlainDisplay(TASK, total_steps=200, line_every_seconds=1e9))
    assert "step 50/200" not in capsys.readouterr().out


@pytest.fixture
def screen():
    return io.StringIO()


def live(screen):
    return LiveDisplay(TASK, 200, console=Console(file=screen, force_terminal=True, width=100, color_system=None))


def test_the_live_screen(screen):
    tell(live(screen))
    text = screen.getvalue()
    for part in (
        "stage 1: operands from 0 to 19",
        "held-out exact match at step 100, 1:02:05",
        "96.0 %",
        "90.2 - 98.4",
        "96/100",
        "> 95 % ✓ at 1:02:05",
        "3 × 4 = 12 ✓",
        "12 × 7 = 85 ✗ 84",
        "99 × 9 = no number ✗ 891",
        "loss 1.2500  rate 2.00e-03  training exact match %: 1x1 50, 2x1 25",
        "51/200",
        "1,234 examples/s",
        " left",
    ):
        assert part in text
    assert "> 90 % ✓" not in text
    assert "> 90 %" in text


def test_the_live_screen_keeps_when_a_mark_was_first_met(screen):
    later = {**EVAL, "seconds": 4000.0, "exact_match": {"1x1": {"correct": 50, "total": 100}}}
    with live(screen) as display:
        display.show(Evaluated(EVAL, EXAMPLES))
        display.show(Evaluated(later, EXAMPLES))
    assert "50.0 %" in screen.getvalue()
    assert screen.getvalue().rindex("> 95 % ✓ at 1:02:05") > screen.getvalue().rindex("1:06:40")


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, LiveDisplay), (False, PlainDisplay)])
def test_a_terminal_gets_the_live_screen(is_terminal, kind, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert type(make_display(TASK, Started(0, 200, ""))) is kind
