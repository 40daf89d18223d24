"""A compiled function: how long it took to compile, what it holds in memory, what it moves; ready to be called."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax

MEGABYTE = 1e6


@dataclass(frozen=True)
class ProgramMemory:
    """Bytes of a compiled program, as the compiler planned them; `aliased` results take the place of arguments."""

    arguments: int
    results: int
    aliased: int
    temporary: int

    @property
    def peak(self) -> int:
        """All that is allocated while the program runs: arguments + results - aliased + temporary."""
        return self.arguments + self.results - self.aliased + self.temporary


class Program:
    """`function` compiled for the arguments, of which only shapes count; arrays and `jax.ShapeDtypeStruct`s will do.

    With `carries`, the first argument is donated, and the first of the results takes its place in the next call.
    It runs on `num_devices` devices.

    Attributes:
        compile_s: seconds to trace, lower and compile.
        memory: what the compiler planned, on all devices together; None where the backend doesn't say.
        moved_bytes: of all arguments and results, each counted once: the least that has to be moved.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, carries: bool = False, num_devices: int = 1):
        jitted = jax.jit(function, donate_argnums=(0,) if carries else (), keep_unused=True)
        start = time.perf_counter()
        lowered = jitted.lower(*arguments)
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - start
        self.memory = program_memory(self.compiled, num_devices)
        self.moved_bytes = tree_bytes(arguments) + tree_bytes(lowered.out_info)
        self._carries = carries

    def memory_dict(self) -> dict[str, int] | None:
        """The memory as plain values."""
        return None if self.memory is None else {**asdict(self.memory), "peak": self.memory.peak}

    def bind(self, *arguments: Any) -> Callable[[], Any]:
        """The program with its arguments, as a function of none."""
        bound = list(arguments)

        def call() -> Any:
            results = self.compiled(*bound)
            if self._carries:
                bound[0] = results[0]
            return results

        return call


def program_memory(compiled: jax.stages.Compiled, num_devices: int = 1) -> ProgramMemory | None:
    """What the compiler planned, on so many devices together; None where the backend doesn't say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return ProgramMemory(
        num_devices * stats.argument_size_in_bytes,
        num_devices * stats.output_size_in_bytes,
        num_devices * stats.alias_size_in_bytes,
        num_devices * stats.temp_size_in_bytes,
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree; random keys, which have no size in bytes, are left out."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
