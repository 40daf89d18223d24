"""What each machine step of the multiplier works out: the same as `ttm_jax.multiplication.steps`, NumPy only."""

from ttm_jax.multiplication.steps import (
    ANSWERED_AT,
    CARRY_HEAD_TARGETS,
    NO_DIGIT,
    PRODUCT_STEPS,
    check_fit,
    num_machine_steps,
    running_sums,
    training_arrays,
)

__all__ = [
    "ANSWERED_AT",
    "CARRY_HEAD_TARGETS",
    "NO_DIGIT",
    "PRODUCT_STEPS",
    "check_fit",
    "num_machine_steps",
    "running_sums",
    "training_arrays",
]
