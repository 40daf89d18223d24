"""The machine in each mode of read x write x processing x compat: whole sequences and streaming."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.compare import FLOAT32_BOUND, FLOAT64_BOUND, Row
from parity.fast_jit import fast_jit
from parity.scenic import MODES as SCENIC_MODES
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
    to_numpy,
)
from parity.weights import twin_of
from ttm_jax.machine.machine import SimpleTokenTuringMachine, TokenTuringMachine
from ttm_jax.machine.memory import READS, WRITES
from ttm_jax.machine.processing import PROCESSING_UNITS

B, T, N, D = 2, 2, 3, 8  # T steps a chunk, of which there are two
SIZES: dict[str, Any] = dict(memory_size=5, process_size=4, num_layers=1, mlp_dim=7, num_heads=2)
_NAMES = ("outputs", "memory after a chunk", "memory")

MODES = tuple(product(READS, WRITES, PROCESSING_UNITS))


def _machine(*modes: str, **fields: Any) -> Any:
    """Make a small machine; `modes` are read, write and processing."""
    options: Any = {**SIZES, **dict(zip(("read", "write", "processing"), modes, strict=True)), **fields}
    return TokenTuringMachine(**options)


def _simple(processing: str, compat: str | None = None) -> Any:
    return SimpleTokenTuringMachine(processing=processing, compat=compat, **SIZES)


MACHINES = (
    *(_machine(*modes) for modes in MODES),
    *(_machine(*modes, unit, compat="scenic") for modes, unit in product(SCENIC_MODES.values(), PROCESSING_UNITS)),
    *(_simple(unit, compat) for unit, compat in product(PROCESSING_UNITS, (None, "scenic"))),
)
# Each read, write and processing unit, each compat, and what the modes don't say, once.
_WITH_GRADIENTS = (
    _machine("mlp", "mlp", "transformer"),
    _machine("query", "query", "mixer", compat="scenic"),
    _machine("mlp", "erase_add", "mlp", compat="scenic"),
    _machine("query", "erase_add", "mixer", remat=True),
    _machine("pooling", "pooling", "mixer", learned_memory=False),
    _machine("query", "concat", "mlp"),
    _machine("pooling", "none", "mlp"),
    _machine("mlp", "mlp", "transformer", positions=False, num_layers=2),
    _simple("mixer"),
)


def name_of(machine: Any) -> str:
    """Name a machine by its modes: "mlp-erase_add-mixer", "mlp-mlp-mlp-scenic", "simple-mixer"."""
    modes = [getattr(machine, field, None) for field in ("read", "write", "processing", "compat")]
    return "-".join([*(["simple"] if modes[0] is None else []), *filter(None, modes)])


@dataclass(frozen=True, eq=False)
class MachineCase:
    """A machine over two chunks, the memory carried from one to the other.

    JAX runs the chunks; the twin runs them and the whole sequence. With gradients, they start from the initial memory
    and go back through both chunks. Without gradients, they start from a given memory.
    """

    machine: Any
    with_gradients: bool = False

    @property
    def name(self) -> str:
        unusual = {
            "no-positions": not getattr(self.machine, "positions", True),
            "no-learned-memory": not self.machine.learned_memory,
            "remat": self.machine.remat,
        }
        group = "gradients" if self.with_gradients else "machine"
        return "-".join([f"{group}/{name_of(self.machine)}", *(word for word, is_so in unusual.items() if is_so)])

    def rows(self, device: str) -> list[Row]:
        """Compare in float64 and in float32; gradients in float64."""
        return [self._row(np.float64, FLOAT64_BOUND, device), self._row(np.float32, FLOAT32_BOUND, device)]

    def _row(self, dtype: Any, bound: float, device: str) -> Row:
        params, theirs = _reference(self, dtype)
        twin = twin_of(self.machine, width=D, num_tokens=N)
        load_weights(twin, params, dtype, device)
        tokens, memory = _inputs(dtype)
        start = None if self.with_gradients else torch.tensor(memory, device=device)

        ours = run_torch(lambda tokens: _stream(twin, tokens, start, torch.cat), twin, params, [tokens], theirs, device)
        with torch.no_grad():
            outputs, memory = twin(torch.tensor(tokens, device=device), start)
        whole = {"outputs": to_numpy(outputs), "memory": to_numpy(memory)}
        streamed = {name: theirs.outputs[name] for name in whole}
        return compare_results(np.dtype(dtype).name, bound, ours, theirs, whole_sequence=(whole, streamed))


def _stream(run: Callable[..., Any], tokens_BxTxNxD: Any, memory: Any, concatenate: Callable[..., Any]) -> Any:
    """Run `run(tokens, memory)` on two chunks; return what _NAMES says."""
    first, carried = run(tokens_BxTxNxD[:, :T], memory)
    second, last = run(tokens_BxTxNxD[:, T:], carried)
    return concatenate([first, second], 1), carried, last


def _inputs(dtype: Any) -> list[np.ndarray]:
    return cast([draw(0, B, 2 * T, N, D), draw(1, B, SIZES["memory_size"], D)], dtype)


@cache
def _params(case: MachineCase) -> Any:
    return random_params(case.machine, _inputs(np.float64)[0])


@cache
def _reference(case: MachineCase, dtype: Any) -> tuple[Any, Results]:
    """Compute the parameters and JAX's results."""
    machine = case.machine.clone(param_dtype=dtype)
    tokens, memory = _inputs(dtype)

    def run(params: Any, tokens: Any, memory: Any) -> Any:
        return machine.apply({"params": params}, tokens, memory)

    with jax.enable_x64(dtype == np.float64):
        params = cast_params(_params(case), dtype)
        if case.with_gradients:

            def stream(params: Any, tokens: Any) -> Any:
                return _stream(partial(run, params), tokens, None, jnp.concatenate)

            return params, run_jax(stream, params, [tokens], _NAMES, gradients=dtype == np.float64)
        outputs = _stream(partial(fast_jit(run), params), tokens, memory, jnp.concatenate)
        return params, Results(dict(zip(_NAMES, jax.device_get(outputs), strict=True)))


CASES = (*(MachineCase(machine) for machine in MACHINES), *(MachineCase(m, True) for m in _WITH_GRADIENTS))
