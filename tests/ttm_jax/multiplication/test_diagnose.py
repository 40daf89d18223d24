"""Causes by hand, and what the command finds in a run and in machines of random parameters."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

import ttm_jax
from ttm_jax.multiplication import diagnose as module
from ttm_jax.multiplication.demo.trace import trace
from ttm_jax.multiplication.diagnose import CAUSES, READ, diagnose, find_causes
from ttm_jax.multiplication.problems import encode_answers, held_out_pairs, schoolbook_carries


@pytest.fixture
def command(call_command):
    """`command(*arguments)` gives exit code, stdout and stderr."""
    return partial(call_command, module.main)


def test_causes_by_hand():
    """99 x 99 = 9801, by columns 81, 81 + 81 + 8 = 170 and 81 + 17 = 98."""
    a, b = np.array([99] * 6), np.array([99] * 6)
    targets, true_carries = encode_answers(a * b), schoolbook_carries(a, b)
    assert targets[0, :5].tolist() == [1, 0, 8, 9, 11]
    assert true_carries[0, :3].tolist() == [8, 17, 9]
    predictions, carries = targets.copy(), true_carries.copy()
    predictions[0, 0] = 3  # no carry comes into the first digit
    predictions[1, 1], carries[1, 0] = 2, 7
    predictions[2, 1] = 2  # of 162, to which nothing was carried
    predictions[3, 2] = 5  # of the digit before it nothing was wrong, nor of its carry
    predictions[4, 3], carries[4, 2] = 11, 0  # ended before its time
    predictions[5, 4] = 0  # and after it
    expected = {"carry wrong": 1, "carry left out": 1, "sum wrong": 2, "end wrong": 2}
    assert find_causes(predictions, targets, true_carries, carries) == expected
    assert list(expected) == list(CAUSES)
    assert find_causes(predictions, targets, true_carries, None) == {"sum wrong": 4, "end wrong": 2}
    later = predictions.copy()
    later[:4, 3], carries[0, 2] = 7, 0  # what is wrong after the first wrong digit does not count
    assert find_causes(later, targets, true_carries, carries) == expected


def test_counts_are_those_of_the_answers(tiny_run):
    multiplier = ttm_jax.load(tiny_run.path)
    a, b = held_out_pairs((1, 1), 100).T
    answers = multiplier.multiply(a, b)
    found = diagnose(multiplier, "1x1", batch_size=64)
    assert found["pairs"] == 100
    assert found["wrong"] == sum(answer != x * y for answer, x, y in zip(answers, a, b, strict=True))
    assert 0 < found["wrong"] < 100
    assert sum(found["first_wrong_place"]) == sum(found["causes"].values()) == found["wrong"]
    units_wrong = sum(answer is None or answer % 10 != x * y % 10 for answer, x, y in zip(answers, a, b, strict=True))
    assert found["first_wrong_place"][0] >= units_wrong > 0
    assert found["carries"]["total"] == [int((a * b > 9).sum())]
    assert list(found["read"]) == list(READ)


def test_shares_of_reads_by_hand(make_multiplier):
    """Pooling takes all alike: 4 tokens of memory and 12 of the problem "12×345", EOS and padding."""
    found = diagnose(make_multiplier(read="pooling", memory_size=4, process_size=2), "2x3", 20)
    assert list(found["read"].values()) == pytest.approx([2 / 16, 3 / 16, 4 / 16, 7 / 16], abs=1e-6)


@pytest.mark.parametrize("schedule", ["digit", "product"])
def test_it_sees_what_the_demo_shows(schedule, make_multiplier, without_end):
    """Carries and reads of a length are those of its pairs, one at a time."""
    multiplier = without_end(make_multiplier(read="mlp", schedule=schedule))
    found = diagnose(multiplier, "3x2", 10, batch_size=4)
    pairs = held_out_pairs((3, 2), 10)
    traces = [trace(multiplier, *pair) for pair in pairs.tolist()]
    correct = np.zeros(4, int)
    for traced in traces:
        for step in list(traced.steps)[: len(str(traced.product)) - 1]:
            correct[step] += traced.held_carry(step)[0] == traced.carries_T[step]
    assert found["carries"]["total"] == [
        sum(len(str(a * b)) > place + 1 for a, b in pairs.tolist()) for place in range(4)
    ]
    assert found["carries"]["correct"] == correct.tolist()
    if schedule == "digit":
        weights = np.concatenate([t.read_TxS[: len(str(t.product))] for t in traces])
        shares = [weights[:, :3].sum(axis=1).mean(), weights[:, 4:6].sum(axis=1).mean()]
        assert [found["read"][part] for part in READ[:2]] == pytest.approx(shares, rel=1e-5)


def test_carries_count_where_a_digit_follows(make_multiplier):
    multiplier = make_multiplier(carry_head=True)
    params = jax.tree.map(np.array, multiplier.variables["params"])
    params["carry_head"]["bias"][0] += 100  # nothing is carried, it says
    found = diagnose(dataclasses.replace(multiplier, variables={"params": params}), "2x1", 50)
    pairs = held_out_pairs((2, 1), 50)
    units_carry_nothing = (pairs[:, 0] % 10 * pairs[:, 1] < 10) & (pairs.prod(axis=1) > 9)
    assert found["carries"]["correct"] == [units_carry_nothing.sum(), 0]
    assert found["carries"]["total"] == [(pairs.prod(axis=1) > limit).sum() for limit in (9, 99)]


def test_without_a_carry_head(make_multiplier):
    found = diagnose(make_multiplier(carry_head=False), "1x1", 20)
    assert found["carries"] is None
    assert set(found["causes"]) == {"sum wrong", "end wrong"}


def test_the_command(tiny_run, command):
    arguments = (tiny_run.path, "1x1", "2x1", "--pairs", "20")
    code, out, err = command(*arguments, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    assert list(found["lengths"]) == ["1x1", "2x1"]
    assert found["lengths"]["2x1"]["pairs"] == 20
    assert "commit" in found["provenance"]
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert f"{found['lengths']['2x1']['wrong']} / 20" in out
    assert "carry left out: it had said the right one" in " ".join(out.split())


def test_tables_fit_a_terminal(tiny_run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(tiny_run.path, "--pairs", "20")
    assert code == 0
    assert "…" not in out
    assert "10¹⁰" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "6x1"], "argument lengths: a length is such as 3x2, of 1 to 5 digits each, got '6x1'"),
        (["run", "three"], "argument lengths: a length is such as 3x2, of 1 to 5 digits each, got 'three'"),
        (["run", "--pears", "3"], "unknown argument --pears; did you mean --pairs?"),
        (["no/such"], "checkpoint "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message, command):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"python -m ttm_jax.diagnose: error: {message}")
    assert err.count("\n") == 1


def test_a_model_without_a_machine_is_one_line(command, baseline):
    code, out, err = command(baseline)
    assert (code, out) == (2, "")
    assert err.endswith("baseline: model.kind is transformer, which has no memory to show; name a machine's\n")
