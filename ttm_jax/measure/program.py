"""A compiled function: how long it took to compile, what it holds in memory, what it moves; and several in turns."""

import time
from collections.abc import Callable
from typing import Any

import jax

from ttm_jax.hardware.allocator import release_freed_memory
from ttm_jax.hardware.detect import free_memory
from ttm_jax.measure.report import scaled
from ttm_jax.measure.timing import affordable_calls, spread, time_interleaved

MEGABYTE = 1e6
MOST_MEMORY = 0.9  # of what is free: larger programs are not run


class Program:
    """`function` compiled for the arguments, of which only shapes count; arrays and `jax.ShapeDtypeStruct`s will do.

    With `carries`, the first argument is donated, and the first of the results takes its place in the next call.
    It runs on `num_devices` devices.

    Attributes:
        compile_s: seconds to trace, lower and compile.
        memory: bytes that the compiler planned, on all devices together: "arguments", "results", "aliased" results that
            take the place of arguments, "temporary", and the "peak" of all that is allocated while the program runs;
            None where the backend doesn't say.
        moved_bytes: of all arguments and results, each counted once: the least that has to be moved.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, carries: bool = False, num_devices: int = 1):
        jitted = jax.jit(function, donate_argnums=(0,) if carries else (), keep_unused=True)
        start = time.perf_counter()
        lowered = jitted.lower(*arguments)
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - start
        self.memory = _planned_memory(self.compiled, num_devices)
        self.moved_bytes = _tree_bytes(arguments) + _tree_bytes(lowered.out_info)
        self._carries = carries

    def bind(self, *arguments: Any) -> Callable[[], Any]:
        """Return the program with its arguments, as a function of none."""
        bound = list(arguments)

        def call() -> Any:
            results = self.compiled(*bound)
            if self._carries:
                bound[0] = results[0]
            return results

        return call


def _planned_memory(compiled: jax.stages.Compiled, num_devices: int) -> dict[str, int] | None:
    if (stats := compiled.memory_analysis()) is None:
        return None
    kinds = {"arguments": "argument", "results": "output", "aliased": "alias", "temporary": "temp"}
    found = {name: num_devices * getattr(stats, f"{kind}_size_in_bytes") for name, kind in kinds.items()}
    return {**found, "peak": sum(found.values()) - 2 * found["aliased"]}


def _tree_bytes(tree: Any) -> int:
    """Count the bytes of all arrays of a tree; random keys, which have no size in bytes, are left out."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def too_large(program: Program, device: jax.Device) -> str | None:
    """Say why a program is not run: what it takes and what is free; None where it fits, or nothing is known."""
    release_freed_memory()
    free = free_memory(device)
    if program.memory is None or free is None or program.memory["peak"] <= MOST_MEMORY * free:
        return None
    return f"takes {scaled(program.memory['peak'], 'B')}, {scaled(free, 'B')} are free"


class Turns:
    """Functions that are compared in one run: those whose programs fit take turns.

    Attributes:
        rows: what is known of each by name: "compile_s", "memory", and the spread of its calls or why it is "skipped".
        functions: what is timed.
        calls: of each function; those that are not there are called for `budget_s` seconds, at most `most` times.
    """

    def __init__(self, device: jax.Device, budget_s: float, most: int = 1000):
        self.rows: dict[str, dict[str, Any]] = {}
        self.functions: dict[str, Callable[[], Any]] = {}
        self.calls: dict[str, int] = {}
        self._device, self._budget_s, self._most = device, budget_s, most

    def fits(self, name: str, program: Program) -> bool:
        """Begin a program's row; say whether the device has room for it."""
        self.rows[name] = {"compile_s": program.compile_s, "memory": program.memory}
        if reason := too_large(program, self._device):
            self.rows[name]["skipped"] = reason
        return reason is None

    def enter(self, name: str, program: Program, *arguments: Any) -> None:
        """Let a program take part with its arguments, where it fits."""
        if self.fits(name, program):
            self.functions[name] = program.bind(*arguments)

    def time(self, rounds: int | None = None, on_round: Callable[[], None] = lambda: None) -> dict[str, dict[str, Any]]:
        """Time the functions over so many rounds, or where None each as often as the slowest, a call a round."""
        calls = {
            name: self.calls.get(name) or affordable_calls(function, self._budget_s, most=self._most)
            for name, function in self.functions.items()
        }
        if rounds is None:
            calls = dict.fromkeys(calls, min(calls.values(), default=0))
        for name, seconds in time_interleaved(self.functions, calls, rounds, on_round).items():
            self.rows.setdefault(name, {}).update(spread(seconds))
        return self.rows
