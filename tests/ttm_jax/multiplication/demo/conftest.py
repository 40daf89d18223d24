"""A small multiplier with random parameters, without training."""

import pytest

from ttm_jax.multiplication.multiplier import Multiplier


@pytest.fixture(scope="session")
def multiplier(make_multiplier) -> Multiplier:
    """The modes of the shipped model."""
    return make_multiplier(read="mlp", write="mlp", memory_size=6, carry_head=True)
