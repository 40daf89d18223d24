"""Strict settings for every test. They must stand before the first import of the packages under test."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)
torch.set_num_threads(1)  # small arrays: more threads wait for each other

# Shape and dtype contracts of the public pure functions: checked here, free for users.
install_import_hook(["ttm_jax.summarize", "ttm_jax.memory", "ttm_jax.processing"], "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """All tests run on the CPU, where results are exact to the bit, but for `-m gpu`."""
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # of the commands that tests start
        jax.config.update("jax_platforms", "cpu")


@pytest.fixture
def nans_are_errors() -> Iterator[None]:
    """Any NaN that a jitted computation gives raises FloatingPointError."""
    with jax.debug_nans(True):
        yield


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Any]:
    """Parameters of a module with no scale one and no bias zero, without compiling its initialisation.

    `random_params(module, *inputs)`; kernels keep the variance of what they multiply.
    """

    def draw(module: Any, *inputs: Any) -> Any:
        generator = np.random.default_rng(0)

        def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
            numbers = generator.normal(size=shape.shape)
            scale = shape.shape[0] ** -0.5 if path[-1].key == "kernel" else 0.2
            return jnp.asarray((path[-1].key == "scale") + scale * numbers, shape.dtype)

        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree_util.tree_map_with_path(leaf, shapes.get("params", {}))

    return draw


@pytest.fixture(scope="session")
def normal() -> Callable[..., jax.Array]:
    """Standard normal float32 numbers: `normal(seed, *shape)`."""

    def draw(seed: int, *shape: int) -> jax.Array:
        return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)

    return draw
