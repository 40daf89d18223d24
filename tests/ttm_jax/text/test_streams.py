"""Documents in streams: each segment once an epoch, no history that is not a document's own, batches pure."""

import itertools

import numpy as np
import pytest

from ttm_jax.text.streams import Streams

BOS, PAD = 256, 257
N = 4


@pytest.fixture
def documents():
    """Of all lengths around that of a segment; every token of all is another one."""
    lengths = (1, N - 1, N, N + 1, 3 * N, 11, 2)
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def make(documents, batch_size=3, segments=2, seed=0):
    return Streams(documents, batch_size, segments, N, BOS, PAD, seed)


def epoch(streams, number=0):
    first = number * streams.steps_per_epoch
    return [streams.batch(step) for step in range(first, first + streams.steps_per_epoch)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("segments", [1, 2, 5])
def test_each_token_is_a_target_once_an_epoch(documents, batch_size, segments):
    streams = make(documents, batch_size, segments)
    for number in (0, 1):
        batches = epoch(streams, number)
        targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])
        assert sorted(targets) == list(range(sum(map(len, documents))))


def test_inputs_are_the_tokens_before(documents):
    befores = {}
    for document in documents:
        befores |= dict(zip(document, [BOS, *document[:-1]], strict=True))
    for batch in epoch(make(documents)):
        there = batch["weights"] > 0
        assert [befores[target] for target in batch["targets"][there]] == batch["tokens"][there].tolist()
        for name in ("tokens", "targets"):
            assert (batch[name][~there] == PAD).all()
            assert batch[name].dtype == np.int32


def test_a_stream_goes_on_from_batch_to_batch(documents):
    """What follows a segment in its stream, where nothing starts, is the next segment of its document."""
    batches = epoch(make(documents))
    for row in range(3):
        segments = [
            (targets[weights > 0], start)
            for batch in batches
            for targets, weights, start in zip(
                batch["targets"][row], batch["weights"][row], batch["start"][row], strict=True
            )
        ]
        assert segments[0][1]
        for (before, _), (now, start) in itertools.pairwise(segments):
            if not start:
                assert len(before) == N
                assert now[0] == before[-1] + 1
    begins = {document[0] for document in documents}
    for batch in batches:
        firsts = batch["targets"][..., 0][batch["weights"][..., 0] > 0]
        starts = batch["start"][batch["weights"][..., 0] > 0]
        assert all(start for first, start in zip(firsts, starts, strict=True) if first in begins)


def test_batches_follow_from_seed_and_step(documents):
    one, other = make(documents), make(documents)
    last = one.batch(7)
    for step in range(8):
        batch = other.batch(step)
    for name, array in last.items():
        np.testing.assert_array_equal(array, batch[name])


def test_epochs_and_seeds_have_orders_of_their_own(documents):
    def order(seed, number):
        return [batch["document"].tolist() for batch in epoch(make(documents, seed=seed), number)]

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(None, 0) == order(None, 1)
    firsts = [batch["document"][batch["document"] >= 0] for batch in epoch(make(documents, 1, 1, None))]
    assert np.all(np.diff(np.concatenate(firsts)) >= 0)
