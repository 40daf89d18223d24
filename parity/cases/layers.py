"""Layer by layer: outputs, and gradients by every parameter and input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import torch
from flax import linen
from torch import nn

import ttm_jax
import ttm_torch
from parity.compare import FLOAT32_BOUND, FLOAT64_BOUND, Arrays, Row, compared
from parity.fast_jit import fast_jit
from parity.twins import (
    Results,
    cast,
    cast_params,
    compare_results,
    draw,
    load_weights,
    random_params,
    run_jax,
    run_torch,
    tensors_of,
    to_numpy,
    to_torch,
)
from ttm_jax.machine.layers import LayerNorm
from ttm_jax.machine.memory import READS, WRITES, make_write as make_jax_write
from ttm_jax.multiplication import losses as jax_losses
from ttm_torch.machine.layers import layer_norm
from ttm_torch.multiplication import losses as torch_losses
from ttm_torch.multiplication.model import OutputHead

B, N, M, R, K, D, H, F, L = 2, 6, 5, 4, 3, 8, 2, 7, 2

_TOKENS, _MEMORY, _OUTPUT = draw(0, B, N, D), draw(1, B, M, D), draw(2, B, R, D)
_READ, _WRITTEN = (_MEMORY, _TOKENS), (_MEMORY, _OUTPUT, _TOKENS)
_BATCH = ttm_jax.MultiplicationDataset(batch_size=4, start_stage=2).batch(seed=0, step=2)
_LOGITS, _CARRY_LOGITS = 3 * draw(3, 4, 12, 13), draw(4, 4, 12, 45)
_TARGETS = np.concatenate([np.ones((1, 12), np.int32), _BATCH.targets[1:]])  # the first has no EOS
_PROBABILITIES, _MASK = 1 / (1 + np.exp(-draw(5, 4, 12))), (draw(6, 4, 12) > 0).astype(np.float64)


@dataclass(frozen=True, eq=False)
class LayerCase:
    """A JAX module and its twin, or two functions of the same name; `make_jax(dtype)` and `make_torch()` make them."""

    name: str
    make_jax: Callable[[Any], Any]
    make_torch: Callable[[], Callable[..., Any]]
    inputs: tuple[np.ndarray, ...]
    float32_bound: float = FLOAT32_BOUND

    def rows(self, device: str) -> list[Row]:
        """Compare outputs and gradients in float64, outputs in float32."""
        return [self._row(np.float64, FLOAT64_BOUND, device), self._row(np.float32, self.float32_bound, device)]

    def _row(self, dtype: Any, bound: float, device: str) -> Row:
        params, theirs = _reference(self, dtype)
        function = self.make_torch()
        twin = function if isinstance(function, nn.Module) else None
        if twin is not None:
            load_weights(twin, params, dtype, device)
        ours = run_torch(function, twin, params, cast(self.inputs, dtype), theirs, device)
        return compare_results(np.dtype(dtype).name, bound, ours, theirs)


@cache
def _reference(case: LayerCase, dtype: Any) -> tuple[Any, Results]:
    """Compute the parameters and JAX's results."""
    with jax.enable_x64(dtype == np.float64):
        inputs, ours, gradients = cast(case.inputs, dtype), case.make_jax(dtype), dtype == np.float64
        if not isinstance(ours, linen.Module):
            return {}, run_jax(lambda _, *inputs: ours(*inputs), {}, inputs, gradients=gradients)
        params = cast_params(_params(case), dtype)
        return params, run_jax(partial(_apply, ours), params, inputs, gradients=gradients)


@cache
def _params(case: LayerCase) -> Any:
    return random_params(case.make_jax(np.float64), *case.inputs)


def _apply(module: Any, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


@dataclass(frozen=True, eq=False)
class FunctionalCase:
    """A module as a pure function of its parameters and inputs, under the same name in both packages.

    Attributes:
        module: the module whose parameters the function takes.
        init_inputs: the module's inputs, where they are not the function's.
    """

    function: str
    module: Any
    inputs: tuple[np.ndarray, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    init_inputs: tuple[np.ndarray, ...] | None = None

    @property
    def name(self) -> str:
        return f"layers/{self.function}"

    def rows(self, device: str) -> list[Row]:
        params, theirs = _functional_reference(self)
        state = {name: tensor.to(device) for name, tensor in to_torch(params).items()}
        ours = getattr(ttm_torch, self.function)(*tensors_of(self.inputs, device), **self.keywords, params=state)
        return [compared("float64", FLOAT64_BOUND, outputs=({"": to_numpy(ours)}, {"": theirs}))]


@cache
def _functional_reference(case: FunctionalCase) -> tuple[Any, np.ndarray]:
    with jax.enable_x64(True):
        params = random_params(case.module.clone(param_dtype=np.float64), *(case.init_inputs or case.inputs))
        function = getattr(ttm_jax, case.function)
        return params, np.asarray(fast_jit(partial(function, **case.keywords))(params, *case.inputs))


@dataclass(frozen=True, eq=False)
class ExactCase:
    """Functions whose results must be equal in both packages. Each takes the package and the arrays by name."""

    name: str
    arrays: Mapping[str, np.ndarray]
    functions: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]]

    def rows(self, device: str) -> list[Row]:
        tensors = dict(zip(self.arrays, tensors_of(self.arrays.values(), device), strict=True))
        ours = {name: to_numpy(function(ttm_torch, tensors)) for name, function in self.functions.items()}
        return [compared("float32", 0.0, values=(ours, _exact_reference(self)))]


@cache
def _exact_reference(case: ExactCase) -> Arrays:
    def run(arrays: Any) -> Any:
        return {name: function(ttm_jax, arrays) for name, function in case.functions.items()}

    with jax.enable_x64(False):
        return jax.device_get(fast_jit(run)(dict(case.arrays)))


def _module(name: str, ours: Any, make_torch: Callable[[], nn.Module], *inputs: np.ndarray) -> LayerCase:
    """Make a case of a linen module, with parameters of the wanted dtype where it has any."""

    def make_jax(dtype: Any) -> Any:
        return ours.clone(param_dtype=dtype) if hasattr(ours, "param_dtype") else ours

    return LayerCase(f"layers/{name}", make_jax, make_torch, inputs)


def _function(name: str, *inputs: np.ndarray, **keywords: Any) -> LayerCase:
    """Make a case of the functions of that name."""
    ours, twin = (partial(getattr(package, name), **keywords) for package in (ttm_jax, ttm_torch))
    return LayerCase(f"layers/{name}", lambda _: ours, lambda: twin, inputs)


class _JaxAnswers(linen.Module):
    """The output head without the logit of padding, beside which the others are small."""

    dtype: Any

    @linen.compact
    def __call__(self, x: Any) -> Any:
        name: Any = np.dtype(self.dtype).name
        config = ttm_jax.ModelConfig(width=D, num_heads=H, dtype=name, param_dtype=name)
        return ttm_jax.OutputHead(config, name="head")(x)[..., : ttm_jax.PAD_TOKEN]


class _TorchAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = OutputHead(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)[..., : ttm_torch.PAD_TOKEN]


def _read(kind: str, positions: bool) -> LayerCase:
    return _module(
        f"read-{kind}" + ("" if positions else "-no-positions"),
        ttm_jax.Read(R, kind, H, positions),
        lambda: ttm_torch.Read(R, kind, H, positions, width=D, num_tokens=M + N),
        *_READ,
    )


def _write(kind: str, positions: bool = True, compat: str | None = None) -> LayerCase:
    shared = dict(num_heads=H, positions=positions, compat=compat)
    sizes = dict(memory_size=M, process_size=R, width=D, num_tokens=M + R + N)
    return _module(
        "-".join([f"write-{kind}", *([] if positions else ["no-positions"]), *filter(None, [compat])]),
        make_jax_write(kind, **shared),
        lambda: ttm_torch.make_write(kind, **shared, **sizes),
        *_WRITTEN,
    )


def _layer_norm(mean: float = 0.0, scale: float = 1.0) -> LayerCase:
    """Normalise tokens of that mean, in deviations, and scale; float32 rounds the mean, which is then subtracted."""
    name = "layer_norm" + (f"-mean-{mean:g}" if mean else "") + (f"-scale-{scale:g}" if scale != 1 else "")
    case = _module(name, LayerNorm(), lambda: layer_norm(D), scale * (mean + _TOKENS))
    return replace(case, float32_bound=FLOAT32_BOUND * max(1.0, mean / 10))


CASES = (
    _module("dense", linen.Dense(K), lambda: nn.Linear(D, K), _TOKENS),
    *(_layer_norm(mean) for mean in (0.0, 10.0, 100.0, 1000.0)),
    *(_layer_norm(mean, scale) for mean in (0.0, 100.0) for scale in (1e-3, 1e3)),
    _module("embedding", linen.Embed(13, D), lambda: ttm_torch.Embedding(13, D), _BATCH.inputs),
    _module("positions", ttm_jax.Positions(), lambda: ttm_torch.Positions(N, D), _TOKENS),
    _module("feed_forward", ttm_jax.FeedForward(F, K), lambda: ttm_torch.FeedForward(D, F, K), _TOKENS),
    _module("attention", ttm_jax.MultiHeadAttention(H), lambda: ttm_torch.MultiHeadAttention(D, H), _OUTPUT, _TOKENS),
    _module("summarize-mlp", ttm_jax.MLPSummarizer(K), lambda: ttm_torch.MLPSummarizer(K, D), _TOKENS),
    _module("summarize-query", ttm_jax.QuerySummarizer(K, H), lambda: ttm_torch.QuerySummarizer(K, D, H), _TOKENS),
    _module("summarize-pooling", ttm_jax.PoolingSummarizer(K), lambda: ttm_torch.PoolingSummarizer(K), _TOKENS),
    _module("summarize-pooling-uneven", ttm_jax.PoolingSummarizer(4), lambda: ttm_torch.PoolingSummarizer(4), _TOKENS),
    *(_read(kind, positions) for kind in READS for positions in (True, False)),
    *(_write(kind) for kind in WRITES),
    *(_write(kind, positions=False) for kind in ("mlp", "query", "pooling", "erase_add")),
    *(_write(kind, compat="scenic") for kind in ("mlp", "query", "erase_add")),
    _module("transformer_block", ttm_jax.TransformerBlock(H, F), lambda: ttm_torch.TransformerBlock(D, H, F), _TOKENS),
    _module(
        "transformer_stack",
        ttm_jax.TransformerStack(L, H, F),
        lambda: ttm_torch.TransformerStack(D, L, H, F, num_tokens=N),
        _TOKENS,
    ),
    _module("mixer_stack", ttm_jax.MixerStack(L, F), lambda: ttm_torch.MixerStack(D, L, F, num_tokens=N), _TOKENS),
    _module("mlp_stack", ttm_jax.MLPStack(L, F), lambda: ttm_torch.MLPStack(D, L, F), _TOKENS),
    LayerCase("layers/output_head", _JaxAnswers, _TorchAnswers, (_OUTPUT,)),
    _function("concat_memory_input", *_READ),
    _function("concat_for_write", *_WRITTEN),
    _function("concat_write", _MEMORY, _OUTPUT),
    _function("normalize_weights", draw(7, B, K, N)),
    _function("weighted_sum", _TOKENS, draw(7, B, K, N)),
    _function("pooling_summarize", _TOKENS, k=4),
    _function("erase_and_add", _MEMORY, draw(7, B, K, M), draw(8, B, K, D), draw(9, B, K, D)),
    FunctionalCase("compute_importance_weights", ttm_jax.MLPSummarizer(K), (_TOKENS,), dict(k=K)),
    FunctionalCase("token_summarize", ttm_jax.MLPSummarizer(K), (_TOKENS,), dict(k=K)),
    FunctionalCase("query_summarize", ttm_jax.QuerySummarizer(K, H), (_TOKENS,), dict(k=K, num_heads=H)),
    FunctionalCase("add_positional_info", ttm_jax.Positions(), _READ, {}, (np.concatenate(_READ, axis=1),)),
    FunctionalCase("add_write_positional_info", ttm_jax.Positions(), _WRITTEN, {}, (np.concatenate(_WRITTEN, axis=1),)),
    FunctionalCase("read_operation", ttm_jax.Read(R, "mlp", H), _READ, dict(r=R, kind="mlp", num_heads=H)),
    FunctionalCase("write_operation", make_jax_write("query", num_heads=H), _WRITTEN, dict(kind="query", num_heads=H)),
    FunctionalCase("erase_add_write", make_jax_write("erase_add"), _WRITTEN),
    FunctionalCase(
        "process",
        ttm_jax.TransformerStack(L, H, F),
        (_TOKENS,),
        dict(kind="transformer", num_layers=L, num_heads=H, mlp_dim=F),
    ),
    _function("extract_eos_probs", _LOGITS),
    _function("compute_ce_loss", _LOGITS, _TARGETS),
    _function("compute_masked_ce_loss", _LOGITS, _TARGETS, _MASK),
    _function("compute_normalized_ce_loss", _LOGITS, _TARGETS),
    _function("compute_eos_bce", _PROBABILITIES, _MASK, _MASK[::-1].copy()),
    _function("compute_total_loss", _LOGITS, _TARGETS),
    LayerCase(
        "layers/sum_carry_loss",
        lambda _: jax_losses.sum_carry_loss,
        lambda: torch_losses.sum_carry_loss,
        (_CARRY_LOGITS, _BATCH.carries, _TARGETS),
    ),
    LayerCase(
        "layers/sum_column_loss",
        lambda _: jax_losses.sum_column_loss,
        lambda: torch_losses.sum_column_loss,
        (_LOGITS, _CARRY_LOGITS, np.where(_MASK > 0, 10 * _BATCH.carries + 7, -1)),
    ),
    ExactCase(
        "layers/eos_masking",
        {"inputs": _BATCH.inputs, "targets": _TARGETS, "logits": 3 * _LOGITS.astype(np.float32)},
        {
            "create_position_indices": lambda ttm, a: ttm.create_position_indices(a["inputs"]),
            "detect_eos": lambda ttm, a: ttm.detect_eos(a["logits"]),
            "create_eos_mask": lambda ttm, a: ttm.create_eos_mask(ttm.detect_eos(a["logits"])),
            "apply_digit_mask": lambda ttm, a: ttm.apply_digit_mask(a["logits"], ttm.create_target_mask(a["targets"])),
            "apply_eos_boost": lambda ttm, a: ttm.apply_eos_boost(a["logits"], ttm.create_target_mask(a["targets"])),
            "apply_eos_masking": lambda ttm, a: ttm.apply_eos_masking(a["logits"], ttm.detect_eos(a["logits"])),
            "create_target_mask": lambda ttm, a: ttm.create_target_mask(a["targets"]),
            "find_eos_positions": lambda ttm, a: ttm.find_eos_positions(a["targets"]),
            "create_eos_target": lambda ttm, a: ttm.create_eos_target(ttm.find_eos_positions(a["targets"]), 12),
        },
    ),
    ExactCase(
        "layers/metrics",
        {"predictions": np.where(_MASK > 0, _TARGETS, 3).astype(np.int32), "targets": _TARGETS},
        {
            "exact_match": lambda ttm, a: ttm.exact_match(a["predictions"], a["targets"]),
            "position_accuracy": lambda ttm, a: ttm.position_accuracy(a["predictions"], a["targets"]),
            "sequence_accuracy": lambda ttm, a: ttm.sequence_accuracy(a["predictions"], a["targets"]),
        },
    ),
)
