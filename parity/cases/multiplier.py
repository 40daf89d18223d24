"""The multiplier as it is used: at the sizes of the shipped configs, in evaluation, and in bfloat16."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import ttm_jax
import ttm_torch
from parity.cases.training import SMALL, multiplier_batch, multiplier_params, split_padding
from parity.compare import FLOAT32_BOUND, FLOAT64_BOUND, Arrays, Row, compared
from parity.fast_jit import fast_jit
from parity.twins import load_weights, tensors_of, to_numpy
from ttm_jax.config import ModelConfig, load_config, shipped_configs

# Layers round to 8 bits, not at the same places: Flax follows each module's dtype, PyTorch autocast.
BFLOAT16_BOUND = 4 * float(jnp.finfo(jnp.bfloat16).eps)


@dataclass(frozen=True, eq=False)
class LogitsCase:
    """Logits of all 12 places, with nothing masked, in one dtype.

    Attributes:
        param_dtype: of the weights.
        dtype: of computation.
    """

    title: str
    make_config: Callable[[], ModelConfig]
    dtype: str
    param_dtype: str
    bound: float

    @property
    def name(self) -> str:
        return f"multiplier/{self.title}"

    def rows(self, device: str) -> list[Row]:
        config, params, theirs = _jax_logits(self)
        twin = ttm_torch.TTMModel(config)
        load_weights(twin, params, self.param_dtype, device)
        (inputs,) = tensors_of([multiplier_batch(0)["inputs"]], device)
        with torch.no_grad():
            ours = map(to_numpy, split_padding(twin.eval().raw_logits(inputs)))
        kinds = {name: ({"": a}, {"": b}) for name, a, b in zip(("logits", "padding"), ours, theirs, strict=True)}
        return [compared(self.dtype, self.bound, **kinds)]


@cache
def _jax_logits(case: LogitsCase) -> tuple[ModelConfig, Any, tuple[np.ndarray, np.ndarray]]:
    options: Any = dict(dtype=case.dtype, param_dtype=case.param_dtype, dropout_rate=0.0)
    config = dataclasses.replace(case.make_config(), **options)
    model = ttm_jax.TTMModel(config)
    with jax.enable_x64(case.param_dtype == "float64"), jax.default_matmul_precision("highest"):
        params = multiplier_params(model, jnp.dtype(case.param_dtype))
        logits = fast_jit(partial(model.apply, method="raw_logits"))({"params": params}, multiplier_batch(0)["inputs"])
        return config, params, jax.device_get(split_padding(logits))


class EvaluationCase:
    """`eval_step` of both packages, EOS masking on."""

    name = "multiplier/evaluation"

    def rows(self, device: str) -> list[Row]:
        params, theirs = _jax_evaluation()
        twin = ttm_torch.TTMModel(SMALL)
        load_weights(twin, params, np.float64, device)
        ours = {name: to_numpy(x) for name, x in ttm_torch.eval_step(twin, multiplier_batch(0)).items()}
        # Accuracies are counts over counts, in float32 in PyTorch and in float64 in JAX's 64-bit mode.
        exact = ("predictions", "position_accuracy", "sequence_accuracy")
        rounded = [{name: side[name].astype(np.float32) for name in exact} for side in (ours, theirs)]
        rest = [{name: x for name, x in side.items() if name not in exact} for side in (ours, theirs)]
        return [
            compared("float64", FLOAT64_BOUND, **{"loss, probabilities": (rest[0], rest[1])}),
            compared("float64", 0.0, **{"predictions, accuracy": (rounded[0], rounded[1])}),
        ]


@cache
def _jax_evaluation() -> tuple[Any, Arrays]:
    with jax.enable_x64(True):
        model = ttm_jax.TTMModel(SMALL)
        params = multiplier_params(model, np.float64)
        step = fast_jit(lambda params, batch: ttm_jax.eval_step(model, params, batch))
        return params, jax.device_get(step(params, multiplier_batch(0)))


def _shipped(name: str) -> ModelConfig:
    return load_config(shipped_configs() / f"{name}.toml").model


def _small() -> ModelConfig:
    return SMALL


CASES = (
    *(
        LogitsCase(f"{name}-{dtype}", partial(_shipped, name), dtype, dtype, bound)
        for name in ("quick", "multiplication")
        for dtype, bound in (("float64", FLOAT64_BOUND), ("float32", FLOAT32_BOUND))
    ),
    EvaluationCase(),
    LogitsCase("quick-bfloat16", partial(_shipped, "quick"), "bfloat16", "float32", BFLOAT16_BOUND),
)
