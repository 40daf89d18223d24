"""The public names as a type checker sees them.

`mypy --strict tests/typed_example.py`, beside an installed package, has to pass. An ignored error is one that it has
to find: an ignore that is not needed is an error too.
"""

from collections.abc import Iterator
from typing import Any, assert_type

import flax.linen as nn
import jax
import numpy as np
import torch

import ttm_jax
import ttm_torch


def multiply() -> list[int | None]:
    multiplier: ttm_jax.Multiplier = ttm_jax.load("five_digits")  # of a language model it would be another class
    assert_type(multiplier.config, ttm_jax.Config)
    assert_type(multiplier.config.model.memory_size, int)
    assert_type(multiplier.model, ttm_jax.TTMModel)
    assert_type(ttm_jax.is_held_out(81256, 74553), bool)
    pairs: np.ndarray[Any, Any] = ttm_jax.held_out_pairs((3, 2), 100)
    assert_type(bool(ttm_jax.is_held_out(pairs[:, 0], pairs[:, 1]).all()), bool)
    multiplier.multiplied([1], [2])  # type: ignore[attr-defined]
    return multiplier.multiply([81256, 35], [74553, 37])


def multiply_in_pytorch(path: str) -> list[int | None]:
    multiplier = ttm_torch.load(path, device="cpu")
    assert_type(multiplier, ttm_torch.Multiplier)
    return multiplier.multiply([81256, 35], [74553, 37])


def write(prompt: str) -> str:
    model: ttm_jax.LanguageModel = ttm_jax.load("text")
    assert_type(model.bits_per_byte(prompt), float)
    writer = model.writer(batch_size=2)
    assert_type(writer, ttm_jax.Writer)
    writer.read(prompt)
    for first, _ in writer.write(10):
        assert_type(first, bytes)
    return "".join(model.generate(prompt, max_new_tokens=10, seed=1))


class Classifier(nn.Module):
    """A model of one's own."""

    @nn.compact
    def __call__(self, tokens_BxTxNxD: jax.Array, memory: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        ttm = ttm_jax.TokenTuringMachine(memory_size=96, process_size=16, num_layers=4, remat=True)
        outputs_BxTxRxD, memory_BxMxD = ttm(tokens_BxTxNxD, memory)
        assert_type(memory_BxMxD, jax.Array)
        return nn.Dense(10)(outputs_BxTxRxD.mean(axis=2)), memory_BxMxD


def classify(tokens: torch.Tensor) -> torch.Tensor:
    ttm = ttm_torch.TokenTuringMachine(width=128, num_tokens=16, memory_size=96, process_size=16, num_layers=4)
    outputs_BxTxRxD, _ = ttm(tokens)
    assert isinstance(outputs_BxTxRxD, torch.Tensor)  # of a module's call PyTorch gives no type
    return outputs_BxTxRxD.mean(dim=2)


def train(config: ttm_jax.Config, steps: int) -> Iterator[float]:
    state = ttm_jax.create_state(config)
    assert_type(state, ttm_jax.TrainState)
    dataset = ttm_jax.MultiplicationDataset(config.data.batch_size)
    for step in range(steps):
        batch = ttm_jax.training_arrays(dataset.batch(config.train.seed, step), config.model, dataset.num_steps())
        state, metrics = ttm_jax.train_step(state, batch)
        yield float(metrics["loss"])


def configure() -> ttm_jax.Config:
    ttm_jax.Config(model=3)  # type: ignore[arg-type]
    ttm_jax.TokenTuringMachine(memory_sise=3)  # type: ignore[call-arg]
    ttm_jax.lod("five_digits")  # type: ignore[attr-defined]
    ttm_torch.lod("five_digits")  # type: ignore[attr-defined]
    return ttm_jax.Config(model=ttm_jax.ModelConfig(width=64), optimizer=ttm_jax.OptimizerConfig(name="muon"))


def explain(error: ttm_jax.CheckpointError | ttm_jax.ConfigError) -> str:
    return f"{error}: {ttm_jax.measure_flops}, {ttm_jax.VOCAB_SIZE + 1} tokens"
