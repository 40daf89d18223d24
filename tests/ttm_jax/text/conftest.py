"""Tiny language models, in float64 where a test compares numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttm_jax.text.config import ModelConfig
from ttm_jax.text.model import make_model

V, N = 11, 4
TINY = dict(width=8, segment=N, lower_layers=1, upper_layers=1, mlp_dim=8, num_heads=2, memory_size=3, process_size=2)


@pytest.fixture(scope="session")
def make_tiny(random_params):
    """`make_tiny(dtype="float64", **fields)` gives a model of 11 tokens and segments of 4, and its variables."""

    def make(dtype="float64", **fields):
        model = make_model(ModelConfig(**{**TINY, "dtype": dtype, "param_dtype": dtype, **fields}), V)
        with jax.enable_x64(dtype == "float64"):
            variables = {"params": random_params(model, jnp.zeros((1, 1, N), jnp.int32))}
        return model, variables

    return make


@pytest.fixture(scope="session")
def tokens():
    """`tokens(*shape)`."""
    return lambda *shape, seed=0: np.random.default_rng(seed).integers(V, size=shape).astype(np.int32)
