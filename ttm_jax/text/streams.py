"""Documents as streams of segments, in batches that follow from the seed and the step alone. NumPy only."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ttm_jax.training.task import Arrays


class Streams:
    """Each segment of each document once an epoch, in B streams that a batch takes T segments of.

    A document begins a segment, and its last segment is filled up with padding of weight 0. What a stream carries from
    batch to batch is the history of its document. It ends where "start" is set: where a document begins, and where an
    epoch does.

    Args:
        documents: tokens of each, int [n], n >= 1.
        batch_size: B.
        segments: T of a batch.
        segment: N, tokens of a segment.
        bos: the token before the first of a document.
        pad: the token where there is none.
        seed: of the order of the documents in each epoch; in their own order where None.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        batch_size: int,
        segments: int,
        segment: int,
        bos: int,
        pad: int,
        seed: int | None = None,
    ):
        self.batch_size, self.segments, self.segment = batch_size, segments, segment
        self._bos, self._pad, self._seed = bos, pad, seed
        self._lengths = np.array([len(document) for document in documents])
        self._begins = np.cumsum([0, *self._lengths[:-1]])
        tokens = np.concatenate(documents)
        self._tokens = tokens.astype(np.min_scalar_type(tokens.max()))
        self._num_segments = -(-self._lengths // segment)
        self._stream_length = -(-int(self._num_segments.sum()) // batch_size)
        self.steps_per_epoch = -(-self._stream_length // segments)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Give the documents in the order of an epoch, and where the segments of each end."""
        order = np.arange(len(self._lengths))
        if self._seed is not None:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        return order, np.cumsum(self._num_segments[order])

    def batch(self, step: int) -> Arrays:
        """Make the batch of a step.

        Returns "tokens", "targets" int32 [B, T, N], "weights" float32 [B, T, N] (0 where there is no target), "start"
        bool [B, T] (where nothing before is to be remembered) and "document" int32 [B, T] (-1 where there is none).
        """
        epoch, step = divmod(step, self.steps_per_epoch)
        order, ends = self._order(epoch)
        places_T = step * self.segments + np.arange(self.segments)
        segment_BxT = self._stream_length * np.arange(self.batch_size)[:, None] + places_T
        there_BxT = (places_T < self._stream_length) & (segment_BxT < ends[-1])
        rank_BxT = np.searchsorted(ends, np.where(there_BxT, segment_BxT, 0), side="right")
        document_BxT = order[rank_BxT]
        nth_BxT = np.where(there_BxT, segment_BxT, 0) - (ends[rank_BxT] - self._num_segments[document_BxT])
        # Of the document's targets, the one at each place; the token before it is the input.
        place_BxTxN = nth_BxT[..., None] * self.segment + np.arange(self.segment)
        valid_BxTxN = there_BxT[..., None] & (place_BxTxN < self._lengths[document_BxT][..., None])
        index_BxTxN = np.where(valid_BxTxN, self._begins[document_BxT][..., None] + place_BxTxN, 0)
        targets = self._tokens[index_BxTxN].astype(np.int32)  # wide enough for `bos` and `pad`
        before = self._tokens[np.maximum(index_BxTxN - 1, 0)].astype(np.int32)
        tokens = np.where(place_BxTxN == 0, self._bos, before)
        return {
            "tokens": np.where(valid_BxTxN, tokens, self._pad),
            "targets": np.where(valid_BxTxN, targets, self._pad),
            "weights": valid_BxTxN.astype(np.float32),
            "start": (nth_BxT == 0) | (places_T == 0) | ~there_BxT,
            "document": np.where(there_BxT, document_BxT, -1).astype(np.int32),
        }
