"""One process of the speed comparison; `parity.speed.process` starts it and talks to it.

    python -m parity.speed.worker VARIANT DEVICE

answers each line that it reads, a JSON object, with another:

    {"do": "describe"}                                   {"device", "threads"}
    {"do": "prepare", "case": {...}, "folder": "..."}    {"first_call_s", "call_s", "values"}
    {"do": "time_calls", "count": n}                     {"seconds": [n numbers], "finite"}

The first call traces, compiles and runs. "values" are digests of the results of the first three calls, "call_s" is the
last one's time. Each answer also has "peak_mb", None on CUDA.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from parity.speed.cases import Case, digest
from ttm_jax.hardware.allocator import keep_freed_memory, resident_bytes

CHECKED_CALLS = 3


class Server:
    """The commands, each a method that answers it."""

    def __init__(self, variant: str, device: str):
        self.variant = variant
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.call: Any = None
        if variant.startswith("jax"):
            from parity.speed import jax_side
            from ttm_jax.training.mesh import divide_processor

            divide_processor()
            self.framework: Any = jax_side
        else:
            import torch

            from parity.speed import torch_side

            self.framework = torch_side
            torch.set_num_threads(self.threads)
            torch.set_default_device(device)
            if device == "cuda":
                torch.set_float32_matmul_precision("high")  # JAX's default
        self.framework.warm_up(variant)

    def describe(self) -> dict[str, Any]:
        """Say where the worker computes."""
        return {**self.framework.describe(), "threads": self.threads}

    def prepare(self, case: dict[str, Any], folder: str) -> dict[str, Any]:
        """Build a case with the weights in `folder` and make its first calls."""
        self.call = self.framework.build(Case(**case), self.variant, Path(folder))
        seconds, values = [], []
        for _ in range(CHECKED_CALLS):
            taken, result = self._timed_call()
            seconds.append(taken)
            values += digest(result)
        return {"first_call_s": seconds[0], "call_s": seconds[-1], "values": values}

    def time_calls(self, count: int) -> dict[str, Any]:
        """Time calls; where there are several, make one before them to warm what cooled down while waiting."""
        if count > 1:
            self.call()
        timed = [self._timed_call() for _ in range(count)]
        _, last = timed[-1]
        return {"seconds": [seconds for seconds, _ in timed], "finite": math.isfinite(sum(digest(last)))}

    def _timed_call(self) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        result = self.call()
        return time.perf_counter() - start, as_array(result)


def as_array(result: Any) -> np.ndarray:
    """Return a framework's array or tensor as NumPy's."""
    if hasattr(result, "cpu"):  # a tensor; NumPy can't take one of bfloat16
        result = result.float().cpu()
    return np.asarray(result, np.float64)


def main() -> None:
    variant, device = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    keep_freed_memory(jax=variant.startswith("jax"))  # as training does, for both frameworks
    server = Server(variant, device)
    for line in sys.stdin:
        message = json.loads(line)
        answer = getattr(server, message.pop("do"))(**message)
        peak = resident_bytes("VmHWM") if device == "cpu" else None
        answers.write(json.dumps({**answer, "peak_mb": None if peak is None else peak / 1e6}) + "\n")


if __name__ == "__main__":
    main()
