"""Weights from JAX to PyTorch, through a safetensors file, and back: to the bit."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import ttm_jax
import ttm_torch
from parity import weights
from parity.cases.training import PRODUCTS, SMALL, multiplier_params
from parity.compare import Row, identical, row
from parity.twins import as_arrays

DTYPES = ("float32", "float64", "bfloat16", "float16")
_CONFIGS = (
    SMALL,
    dataclasses.replace(SMALL, read="query", write="query", num_layers=2),
    dataclasses.replace(SMALL, write="erase_add", processing="mixer"),
    dataclasses.replace(SMALL, read="pooling", write="none", processing="mlp"),
    PRODUCTS,
)


@dataclass(frozen=True, eq=False)
class WeightsCase:
    """Multipliers in several modes: JAX -> PyTorch -> JAX and PyTorch -> JAX -> PyTorch, each through a file."""

    dtype: str

    @property
    def name(self) -> str:
        return f"weights/{self.dtype}"

    def rows(self, device: str) -> list[Row]:
        from_jax, back_in_jax, from_torch, back_in_torch = {}, {}, {}, {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.safetensors"
            for i, config in enumerate(_CONFIGS):
                params = multiplier_params(ttm_jax.TTMModel(config), jax.numpy.dtype(self.dtype))
                params["machine"]["initial_memory"].flat[:4] = [np.nan, -0.0, np.inf, 1e-40]
                state = weights.to_torch(params)
                from_jax |= {f"{name} of model {i}": array for name, array in as_arrays(params).items()}
                weights.save(path, state)
                again = as_arrays(weights.to_jax(weights.load(path), params))
                back_in_jax |= {f"{name} of model {i}": array for name, array in again.items()}

                twin = ttm_torch.TTMModel(config).to(device, state["machine.initial_memory"].dtype)
                weights.save(path, weights.to_torch(weights.to_jax(twin.state_dict(), params)))
                for side, tensors in ((from_torch, twin.state_dict()), (back_in_torch, weights.load(path))):
                    side |= {f"{name} of model {i}": weights.to_numpy(tensor) for name, tensor in tensors.items()}
        return [
            row("JAX to PyTorch to JAX, to the bit", identical(back_in_jax, from_jax), 0.0),
            row("PyTorch to JAX to PyTorch, to the bit", identical(back_in_torch, from_torch), 0.0),
        ]


CASES = tuple(WeightsCase(dtype) for dtype in DTYPES)
