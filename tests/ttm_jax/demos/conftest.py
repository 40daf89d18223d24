"""Small multipliers with random parameters, in every mode, without training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from ttm_jax.inference import Multiplier
from ttm_jax.multiplication import encode_problems
from ttm_jax.multiplier import TTMModel


@pytest.fixture(scope="session")
def make_multiplier(tiny_config, random_params) -> Callable[..., Multiplier]:
    """`make_multiplier(read="mlp", write="mlp", ...)`: fields of the model that differ from the tiny config."""

    def make(**fields) -> Multiplier:
        data = dataclasses.replace(tiny_config.data, augment=())
        config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, **fields), data=data)
        model = TTMModel(config.model)
        params = random_params(model, encode_problems(np.array([1]), np.array([1])))
        return Multiplier(model, {"params": params}, config, Path("random"))

    return make


@pytest.fixture(scope="session")
def without_end() -> Callable[[Multiplier], Multiplier]:
    """The same network with a head that writes 7 at every place."""

    def change(multiplier: Multiplier) -> Multiplier:
        params = jax.tree.map(np.array, multiplier.variables["params"])
        params["head"]["digit_head"]["bias"][7] += 100
        return dataclasses.replace(multiplier, variables={"params": params})

    return change


@pytest.fixture(scope="session")
def multiplier(make_multiplier) -> Multiplier:
    """The modes of the shipped model."""
    return make_multiplier(read="mlp", write="mlp", memory_size=6, carry_head=True)
