"""The multiplier as it is used: at the sizes of the shipped configs, in evaluation, and in bfloat16."""

import dataclasses
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
from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.tasks import load_config

# Layers round to 8 bits, not at the same places: Flax follows each module's dtype, PyTorch autocast.
BFLOAT16_BOUND = 4 * float(jnp.finfo(jnp.bfloat16).eps)


@dataclass(frozen=True, eq=False)
class LogitsCase:
    """Logits of all 12 places, with nothing masked, at the sizes of a shipped config."""

    config: str
    dtype: str
    bound: float

    @property
    def name(self) -> str:
        return f"multiplier/{self.config}-{self.dtype}"

    def rows(self, device: str) -> list[Row]:
        ours, theirs = _torch_logits(self.config, self.dtype, device), _jax_logits(self.config, self.dtype)
        return [_row(self.dtype, self.bound, ours, theirs)]


@dataclass(frozen=True, eq=False)
class Bfloat16Case:
    """Logits in bfloat16, with weights in float32: the twins against each other, and each against its own float32."""

    config: str
    write: str

    @property
    def name(self) -> str:
        return f"multiplier/{self.config}-{self.write}-bfloat16"

    def rows(self, device: str) -> list[Row]:
        config, write, dtypes = self.config, self.write, ("float32", "bfloat16")
        jax_wide, jax_narrow = (_jax_logits(config, dtype, write) for dtype in dtypes)
        torch_wide, torch_narrow = (_torch_logits(config, dtype, device, write) for dtype in dtypes)
        return [
            _row("bfloat16", BFLOAT16_BOUND, torch_narrow, jax_narrow),
            _row("bfloat16 against float32 in ttm_jax", BFLOAT16_BOUND, jax_narrow, jax_wide),
            _row("bfloat16 against float32 in ttm_torch", BFLOAT16_BOUND, torch_narrow, torch_wide),
        ]


def _row(label: str, bound: float, ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> Row:
    """Make a row of two kinds: the logits, and the logit of padding."""
    kinds = {name: ({"": a}, {"": b}) for name, a, b in zip(("logits", "padding"), ours, theirs, strict=True)}
    return compared(label, bound, **kinds)


def _torch_logits(name: str, dtype: str, device: str, write: str = "mlp") -> tuple[np.ndarray, np.ndarray]:
    config, params = _model(name, dtype, write)
    twin = ttm_torch.TTMModel(config)
    load_weights(twin, params, config.param_dtype, device)
    (inputs,) = tensors_of([multiplier_batch(0)["inputs"]], device)
    with torch.no_grad():
        logits, padding = split_padding(twin.eval().raw_logits(inputs))
    return to_numpy(logits), to_numpy(padding)


@cache
def _jax_logits(name: str, dtype: str, write: str = "mlp") -> tuple[np.ndarray, np.ndarray]:
    config, params = _model(name, dtype, write)
    apply = partial(ttm_jax.TTMModel(config).apply, method="raw_logits")
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        # Optimised, as users run it, where most cases take `fast_jit`, which compiles sooner.
        logits = jax.jit(apply)({"params": params}, multiplier_batch(0)["inputs"])
        return jax.device_get(split_padding(logits))


@cache
def _model(name: str, dtype: str, write: str) -> tuple[ModelConfig, Any]:
    """Load a shipped config, without dropout, to compute in `dtype`; draw parameters, in float32 at least."""
    param_dtype = "float32" if dtype == "bfloat16" else dtype
    options: Any = dict(write=write, dtype=dtype, param_dtype=param_dtype, dropout_rate=0.0)
    config = dataclasses.replace(load_config(name).model, **options)
    return config, multiplier_params(ttm_jax.TTMModel(config), param_dtype)


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


CASES = (
    *(
        LogitsCase(config, dtype, bound)
        for config in ("quick", "three_digits", "five_digits")
        for dtype, bound in (("float64", FLOAT64_BOUND), ("float32", FLOAT32_BOUND))
    ),
    *(Bfloat16Case("quick", write) for write in ("mlp", "erase_add")),
    EvaluationCase(),
)
