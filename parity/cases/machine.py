"""The machine in each mode of read x write x processing x compat: whole sequences and streaming."""

from collections.abc import Callable, Mapping
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
    Arrays,
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
_NAMES = ("outputs", "memory after a chunk", "memory", "memories")
# A step that begins a chunk is not valid, one that is reset is not valid, and one has no valid token.
_MASKS: Arrays = {
    "valid_BxT": np.array([[1, 1, 0, 1], [0, 1, 1, 1]], bool),
    "valid_BxTxN": np.array(
        [[[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]], [[1, 0, 1], [1, 1, 1], [1, 1, 0], [0, 0, 1]]], bool
    ),
    "reset_BxT": np.array([[0, 0, 0, 1], [1, 0, 1, 0]], bool),
}

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
# Each summary, and all else that a mask or a gate has a part in.
_WITH_MASKS = (
    _machine("mlp", "mlp", "transformer", gate="fixed"),
    _machine("query", "query", "mixer", compat="scenic"),
    _machine("pooling", "pooling", "mlp"),
    _machine("mlp", "erase_add", "mlp", positions=False),
    _machine("pooling", "concat", "mlp", gate="fixed"),
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
    and go back through both chunks. Without gradients, they start from a given memory. With masks, which come with
    gradients, what is not valid is NaN, and the memory that each step read is compared too.
    """

    machine: Any
    with_gradients: bool = False
    with_masks: bool = False

    @property
    def name(self) -> str:
        unusual = {
            "no-positions": not getattr(self.machine, "positions", True),
            "no-learned-memory": not self.machine.learned_memory,
            "remat": self.machine.remat,
            "gate": self.machine.gate,
        }
        group = "masks" if self.with_masks else "gradients" if self.with_gradients else "machine"
        return "-".join([f"{group}/{name_of(self.machine)}", *(word for word, is_so in unusual.items() if is_so)])

    def rows(self, device: str) -> list[Row]:
        """Compare in float64 and, without masks, in float32; gradients in float64."""
        exact = self._row(np.float64, FLOAT64_BOUND, device)
        return [exact] if self.with_masks else [exact, self._row(np.float32, FLOAT32_BOUND, device)]

    def _row(self, dtype: Any, bound: float, device: str) -> Row:
        params, theirs = _reference(self, dtype)
        twin = twin_of(self.machine, width=D, num_tokens=N)
        load_weights(twin, params, dtype, device)
        tokens, memory = _inputs(dtype, self.with_masks)
        start = None if self.with_gradients else torch.tensor(memory, device=device)
        masks = {name: torch.tensor(mask, device=device) for name, mask in _masks(self).items()}
        run = partial(twin, return_memories=self.with_masks)

        def stream(tokens: torch.Tensor) -> Any:
            return _stream(run, tokens, start, masks, torch.cat)

        ours = run_torch(stream, twin, params, [tokens], theirs, device)
        with torch.no_grad():
            outputs, memory, *memories = run(torch.tensor(tokens, device=device), start, **masks)
        named = zip(("outputs", "memory", "memories"), (outputs, memory, *memories), strict=False)
        whole = {name: to_numpy(tensor) for name, tensor in named}
        streamed = {name: theirs.outputs[name] for name in whole}
        return compare_results(np.dtype(dtype).name, bound, ours, theirs, whole_sequence=(whole, streamed))


def _stream(
    run: Callable[..., Any], tokens_BxTxNxD: Any, memory: Any, masks: Mapping[str, Any], concatenate: Callable[..., Any]
) -> tuple[Any, ...]:
    """Run `run(tokens, memory, **masks)` on two chunks; return what _NAMES says, as far as it is there."""
    first, carried, *before = run(tokens_BxTxNxD[:, :T], memory, **{name: mask[:, :T] for name, mask in masks.items()})
    second, last, *after = run(tokens_BxTxNxD[:, T:], carried, **{name: mask[:, T:] for name, mask in masks.items()})
    memories = [concatenate(pair, 1) for pair in zip(before, after, strict=True)]
    return concatenate([first, second], 1), carried, last, *memories


def _inputs(dtype: Any, with_masks: bool = False) -> list[np.ndarray]:
    tokens, memory = draw(0, B, 2 * T, N, D), draw(1, B, SIZES["memory_size"], D)
    if with_masks:
        tokens[~(_MASKS["valid_BxT"][..., None] & _MASKS["valid_BxTxN"])] = np.nan
    return cast([tokens, memory], dtype)


def _masks(case: MachineCase) -> Arrays:
    return _MASKS if case.with_masks else {}


@cache
def _params(case: MachineCase) -> Any:
    return random_params(case.machine, _inputs(np.float64)[0])


@cache
def _reference(case: MachineCase, dtype: Any) -> tuple[Any, Results]:
    """Compute the parameters and JAX's results."""
    machine = case.machine.clone(param_dtype=dtype)
    tokens, memory = _inputs(dtype, case.with_masks)
    masks = _masks(case)

    def run(params: Any, tokens: Any, memory: Any, **masks: Any) -> Any:
        return machine.apply({"params": params}, tokens, memory, return_memories=case.with_masks, **masks)

    with jax.enable_x64(dtype == np.float64):
        params = cast_params(_params(case), dtype)
        if case.with_gradients:

            def stream(params: Any, tokens: Any) -> Any:
                return _stream(partial(run, params), tokens, None, masks, jnp.concatenate)

            names = _NAMES if case.with_masks else _NAMES[:3]
            return params, run_jax(stream, params, [tokens], names, gradients=dtype == np.float64)
        outputs = _stream(partial(fast_jit(run), params), tokens, memory, masks, jnp.concatenate)
        return params, Results(dict(zip(_NAMES, jax.device_get(outputs), strict=False)))


CASES = (
    *(MachineCase(machine) for machine in MACHINES),
    *(MachineCase(machine, True) for machine in _WITH_GRADIENTS),
    *(MachineCase(machine, True, True) for machine in _WITH_MASKS),
)
