"""The multiplication task: the same as `ttm_jax.multiplication`, NumPy only, so both twins see the same data."""

from ttm_jax.multiplication import (
    MAX_CARRY,
    MAX_DIGITS,
    SEQ_LEN,
    STAGES,
    Batch,
    Length,
    MultiplicationDataset,
    augment_batch,
    held_out_pairs,
    is_held_out,
)

__all__ = [
    "MAX_CARRY",
    "MAX_DIGITS",
    "SEQ_LEN",
    "STAGES",
    "Batch",
    "Length",
    "MultiplicationDataset",
    "augment_batch",
    "held_out_pairs",
    "is_held_out",
]
