"""The main job keeps its promise: the default training reaches the checklist's marks on held-out pairs."""

import pytest

from ttm_jax.multiplication.multiplier import load
from ttm_jax.multiplication.task import MARKS
from ttm_jax.tasks import load_config, make_task
from ttm_jax.training.command import DEFAULT_CONFIG
from ttm_jax.training.display import make_display
from ttm_jax.training.jax_command import start
from ttm_jax.training.run_folder import RunFolder


@pytest.mark.slow  # minutes on two cores
def test_the_default_training_reaches_the_marks(tmp_path):
    config = load_config(DEFAULT_CONFIG)
    task = make_task(config)
    run = start(config, task, tmp_path)
    display = make_display(task, next(run))
    for event in run:
        display.show(event)
    evaluation = [record for record in RunFolder(tmp_path).records() if record["kind"] == "eval"][-1]
    accuracy = {name: counts["correct"] / counts["total"] for name, counts in evaluation["exact_match"].items()}
    assert {name for name, mark in MARKS.items() if accuracy[name] > mark} == set(MARKS), accuracy

    pairs = [(12, 3), (3, 12), (99, 9), (7, 8), (250, 4)]
    answers = load(tmp_path).multiply(*zip(*pairs, strict=True))
    assert sum(a * b == answer for (a, b), answer in zip(pairs, answers, strict=True)) >= 4
