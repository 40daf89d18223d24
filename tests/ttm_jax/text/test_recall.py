"""Sequences of facts and questions, and the curriculum over them."""

import numpy as np
import pytest

from ttm_jax.tasks import config_from_dict
from ttm_jax.text.config import RecallConfig
from ttm_jax.text.recall import RecallTask, Vocabulary, make_sequences
from ttm_jax.training.config import ConfigError

CONFIG = RecallConfig(num_keys=8, num_values=5, num_fillers=3, questions=2)


@pytest.fixture
def arrays():
    return make_sequences(CONFIG, 16, 50, 3, 4, np.random.default_rng(0))


def test_each_question_is_answered_by_a_fact_of_the_first_segment(arrays):
    vocabulary = Vocabulary(CONFIG)
    for row in range(50):
        sequence = arrays["tokens"][row].reshape(-1)
        facts = dict(zip(sequence[:8:2].tolist(), sequence[1:8:2].tolist(), strict=True))
        assert len(facts) == 4
        asked = np.flatnonzero(arrays["weights"][row].reshape(-1))
        assert len(asked) == 2
        assert (asked >= 2 * 16).all()
        for place in asked:
            assert sequence[place - 1] == vocabulary.question
            assert arrays["targets"][row].reshape(-1)[place] == facts[sequence[place]]
        assert len(set(sequence[asked].tolist())) == 2
        assert (sequence[8 : asked[0] - 1] >= vocabulary.first_filler).all()
        assert (sequence < vocabulary.size).all()


def test_a_fact_that_is_asked_for_again_does_not_count():
    """Every fact is asked for once before any is again."""
    config = RecallConfig(num_keys=8, num_values=5, num_fillers=3, questions=5)
    arrays = make_sequences(config, 16, 50, 3, 2, np.random.default_rng(0), again=True)
    tokens, weights, counted = (arrays[name].reshape(50, -1) for name in ("tokens", "weights", "counted"))
    assert (weights.sum(axis=1) == 5).all()
    assert (counted.sum(axis=1) == 2).all()
    for row in range(50):
        asked, first = np.flatnonzero(weights[row]), np.flatnonzero(counted[row])
        assert first.tolist() == asked[:2].tolist()
        assert set(tokens[row, first]) == set(tokens[row, [0, 2]])
    once = make_sequences(config, 16, 50, 3, 1, np.random.default_rng(0), again=True)
    np.testing.assert_array_equal(once["weights"], once["counted"])


def make_task(**fields):
    return RecallTask(
        config_from_dict(
            {"task": "text", "data": {"kind": "recall", "batch_size": 4}, "recall": {"window": 3, **fields}}
        )
    )


def record(task, right):
    return task.record(task.batch(0), {"right": np.array(right), "counted": np.ones(4)})


def test_a_level_is_left_where_enough_is_recalled():
    task = make_task(levels=[[2, 1], [4, 2]], threshold=0.75)
    assert not task.must_read(0)
    assert record(task, [1, 1, 1, 0]) is None
    assert record(task, [1, 1, 0, 0]) is None
    assert task.must_read(2)
    assert record(task, [1, 1, 1, 0])["recall"] == pytest.approx(8 / 12)
    assert task.batch(3).arrays["tokens"].shape[1] == 2
    assert [record(task, [1, 1, 1, 0]) for _ in range(3)][-1] == {"segments": 2, "facts": 1, "recall": 0.75}
    assert task.batch(6).arrays["tokens"].shape[1] == 4
    assert [record(task, [1, 1, 1, 1]) for _ in range(3)][-1]["segments"] == 4
    again = make_task(levels=[[2, 1], [4, 2]], threshold=0.75)
    again.load_dict(task.to_dict())
    np.testing.assert_array_equal(again.batch(9).arrays["tokens"], task.batch(9).arrays["tokens"])


def oracle(arrays):
    """Recalls where the facts have not been forgotten at a start."""
    known = ~arrays["start"][:, 1:].any(axis=(1, 2))
    return {"right": arrays["weights"] * known[:, None, None, None]}


def test_an_evaluation_asks_with_memory_and_without():
    task = make_task(levels=[[2, 1], [3, 2]], threshold=0.5, stop_at=1.0, eval_sequences=10)
    found = task.evaluate(oracle)
    assert found.record["recall"] == {"2": {"correct": 10, "total": 10}}
    assert found.record["wiped"] == {"correct": 0, "total": 10}
    verdict = task.end_epoch(found)
    assert verdict.improved
    assert not verdict.stop
    for _ in range(3):
        record(task, [1, 1, 1, 1])
    last = task.evaluate(oracle)
    assert last.record["recall"] == {"3": {"correct": 20, "total": 20}, "12": {"correct": 20, "total": 20}}
    assert last.score > found.score
    assert task.end_epoch(last).stop


def test_questions_that_do_not_fit_are_refused():
    recall = {"levels": [[2, 9]], "questions": 8}
    with pytest.raises(ConfigError, match="must hold the facts .* got 16 for 9 facts and 8 questions"):
        config_from_dict({"task": "text", "model": {"segment": 16}, "data": {"kind": "recall"}, "recall": recall})
