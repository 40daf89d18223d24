"""The mixture of lengths by hand, and when a stage ends."""

import json

import numpy as np
import pytest

from ttm_jax.multiplication.config import CurriculumConfig
from ttm_jax.multiplication.curriculum import Curriculum, Mixture

CONFIG = CurriculumConfig(mixture_every=2)


def record(mixture, *batches, config=CONFIG):
    """What each batch, a list of (length, right), gives."""
    return [mixture.record(config, *np.array(batch, int).T) for batch in batches]


def test_a_mixture_starts_uniform():
    mixture = Mixture.uniform(4)
    assert mixture.shares == [0.25] * 4
    assert mixture.running == [0.0] * 4


def test_the_mixture_by_hand():
    mixture = Mixture.uniform(3)
    nothing, accuracy = record(mixture, [(0, 1), (0, 1), (1, 1), (1, 0)], [(0, 1), (0, 1), (1, 0), (1, 0)])
    assert nothing is None
    assert accuracy == [1.0, 0.25, 0.0]
    # Running accuracies are half of the window's and half of what they were: 1/2, 1/8, 0.
    raw = np.array([0.5 * 1 + 0.05, 0.875 * (0.5 + 0.15) + 0.05, 1 * (0.125 + 0.15) + 0.05])
    assert mixture.running == [0.5, 0.125, 0.0]
    assert mixture.shares == pytest.approx((raw / raw.sum()).tolist())

    nothing, accuracy = record(mixture, [(0, 1), (2, 1)], [(0, 1), (2, 0)])
    assert nothing is None
    assert accuracy == [1.0, 0.125, 0.5]  # nothing of the second length: it keeps its running accuracy
    raw = np.array([0.25 * 1 + 0.05, 0.875 * (0.75 + 0.15) + 0.05, 0.75 * (0.125 + 0.15) + 0.05])
    assert mixture.running == [0.75, 0.125, 0.25]
    assert mixture.shares == pytest.approx((raw / raw.sum()).tolist())


def test_a_window_starts_from_nothing():
    mixture = Mixture.uniform(2)
    record(mixture, [(0, 1)], [(0, 1)])
    assert (mixture.correct, mixture.total, mixture.steps) == ([0, 0], [0, 0], 0)
    record(mixture, [(0, 1), (1, 0)])
    assert (mixture.correct, mixture.total, mixture.steps) == ([1, 0], [1, 1], 1)


def test_headroom_is_capped_and_the_floor_keeps_every_length():
    mixture = Mixture.uniform(2)
    for _ in range(20):
        record(mixture, [(0, 1), (1, 1)], [(0, 1), (1, 1)])
    assert mixture.shares == pytest.approx([0.5, 0.5], abs=1e-4)  # all learnt: the floors alone are left
    for _ in range(20):
        record(mixture, [(0, 1), (1, 0)], [(0, 1), (1, 0)])
    assert mixture.shares == pytest.approx([0.05 / 1.1, 1.05 / 1.1], abs=1e-4)


def test_shares_sum_to_one():
    generator, mixture = np.random.default_rng(0), Mixture.uniform(5)
    for _ in range(40):
        mixture.record(CONFIG, generator.integers(0, 5, 16), generator.random(16) < 0.5)
        assert sum(mixture.shares) == pytest.approx(1.0)
        assert min(mixture.shares) > 0


def test_without_adaptation_shares_stay_equal():
    config, mixture = CurriculumConfig(adaptive=False, mixture_every=2), Mixture.uniform(2)
    _, accuracy = record(mixture, [(0, 1), (1, 0)], [(0, 1), (1, 0)], config=config)
    assert accuracy == [1.0, 0.0]
    assert mixture.shares == [0.5, 0.5]
    assert mixture.running == [0.5, 0.0]


def curriculum(stage=0, **kwargs):
    return Curriculum(stage, Mixture.uniform(1), **kwargs)


@pytest.mark.parametrize(
    ("history", "advances"),
    [
        ([1.0] * 4, False),  # fewer than five
        ([0.9] * 5, True),
        ([0.0, 0.9, 0.9, 0.9, 0.9, 0.9], True),  # the latest five
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.0], False),
        ([0.8, 1.0, 0.8, 1.0, 0.9], True),
        ([0.8, 1.0, 0.8, 1.0, 0.89], False),
        ([], False),
    ],
)
def test_the_mean_of_five_evaluations_moves_on(history, advances):
    assert curriculum(accuracy_history=history).should_advance(CurriculumConfig()) is advances


def test_the_longest_stay_in_a_stage():
    config = CurriculumConfig()
    assert not curriculum(stage_epochs=999).should_advance(config)
    assert curriculum(stage_epochs=1000).should_advance(config)


def test_the_last_stage_is_never_left():
    config = CurriculumConfig(last_stage=3)
    finished = dict(accuracy_history=[1.0] * 9, stage_epochs=10**6)
    assert curriculum(2, **finished).should_advance(config)
    assert not curriculum(3, **finished).should_advance(config)


def test_advancing_begins_the_stage_anew():
    progress = curriculum(stage_epochs=30)
    progress.record_evaluation(0.95)
    progress.advance(3)
    assert progress == Curriculum(1, Mixture.uniform(3))


def test_only_a_better_evaluation_is_the_best():
    progress, better = curriculum(), []
    for epoch, accuracy in enumerate([0.0, 0.0, 0.5, 0.4, 0.5, 0.6]):
        progress.stage_epochs = epoch
        better.append(progress.record_evaluation(accuracy))
    assert better == [True, False, True, False, False, True]
    assert (progress.best_accuracy, progress.best_epoch) == (0.6, 5)
    assert progress.accuracy_history == [0.0, 0.0, 0.5, 0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    ("stage", "epochs", "patience", "stops"),
    [(6, 29, 20, False), (6, 30, 20, True), (5, 30, 20, False), (6, 30, None, False), (6, 30, 21, False)],
)
def test_patience_ends_at_the_last_stage_only(stage, epochs, patience, stops):
    progress = curriculum(stage, stage_epochs=epochs, best_epoch=10)
    assert progress.should_stop(CurriculumConfig(last_stage=6), patience) is stops


def test_json_keeps_every_bit():
    generator = np.random.default_rng(0)
    progress = Curriculum(2, Mixture.uniform(3), stage_epochs=7)
    for _ in range(7):
        progress.mixture.record(CONFIG, generator.integers(0, 3, 16), generator.random(16) < 0.3)
        progress.record_evaluation(float(generator.random()))
    assert progress.mixture.steps == 1
    restored = Curriculum.from_dict(json.loads(json.dumps(progress.to_dict())))
    assert restored == progress
    assert restored.mixture is not progress.mixture
