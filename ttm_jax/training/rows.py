"""Any number of rows through a function of a fixed number of them. NumPy only."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ttm_jax.training.task import Arrays


def predict_rows(
    predict: Callable[[Arrays], Any],
    arrays: Arrays,
    batch_size: int,
    read: Callable[[list[Any]], list[Any]] = lambda results: results,
) -> Arrays:
    """Compute `predict` of all rows, at most `batch_size` at a time.

    Each call has the same number of rows, a power of two where they are few, so that there are few compilations; the
    last is filled up with copies of the first row, whose results are dropped.

    Args:
        predict: of arrays [b, ...], gives results [b, ...] by name, which may still be computed.
        arrays: of all rows [N, ...].
        batch_size: the largest b.
        read: of all results, gives them as NumPy arrays.
    """
    N = len(next(iter(arrays.values())))
    rows = min(batch_size, 1 << (N - 1).bit_length())

    def chunk(array: np.ndarray, start: int) -> np.ndarray:
        part = array[start : start + rows]
        return np.concatenate([part, np.repeat(array[:1], rows - len(part), axis=0)])

    starts = range(0, N, rows)
    results = read([predict({name: chunk(array, start) for name, array in arrays.items()}) for start in starts])
    return {name: np.concatenate([np.asarray(result[name]) for result in results])[:N] for name in results[0]}
