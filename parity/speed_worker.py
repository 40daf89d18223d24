"""One process of the speed comparison: `python -m parity.speed_worker VARIANT DEVICE`, driven by `parity.speed`.

Reads a JSON object a line and answers with one:

    (at the start)                                       {"device", "threads", ...versions}
    {"do": "prepare", "case": {...}, "folder": "..."}    {"first_call_s", "call_s", "values"}
    {"do": "run", "calls": n}                            {"seconds": [n numbers], "finite", "peak_mb"}

The first call traces, compiles and runs; "values" are digests of the results of the first calls. Before timed calls
that are short goes one that is not timed. A user never starts it.
"""

import gc
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from parity.speed_cases import CHECK_CALLS, Case, digest


class Server:
    """The state of a worker: the case that it has prepared."""

    def __init__(self, variant: str, device: str):
        self.variant = variant
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.call: Any = None
        if variant.startswith("jax"):
            from parity import speed_jax as framework

            framework.warm_up()
        else:
            import torch

            from parity import speed_torch as framework

            torch.set_num_threads(self.threads)
            torch.set_default_device(device)
            framework.warm_up(variant)
        self.framework = framework

    def hello(self) -> dict[str, Any]:
        """Where the worker runs."""
        return {**self.framework.describe(), "threads": self.threads}

    def prepare(self, case: dict[str, Any], folder: str) -> dict[str, Any]:
        """Builds a case and makes its first calls."""
        self.call = None
        gc.collect()
        call = self.framework.build(Case(**case), self.variant, Path(folder))
        values, seconds = [], []
        for _ in range(CHECK_CALLS):
            start = time.perf_counter()
            result = call()
            seconds.append(time.perf_counter() - start)
            values += digest(_numpy(result))
        self.call = call
        return {"first_call_s": seconds[0], "call_s": seconds[-1], "values": values}

    def run(self, calls: int) -> dict[str, Any]:
        """Times calls of the prepared case."""
        _forget_peak()
        if calls > 1:
            self.call()
        seconds, result = [], None
        for _ in range(calls):
            start = time.perf_counter()
            result = self.call()
            seconds.append(time.perf_counter() - start)
        finite = math.isfinite(sum(digest(_numpy(result))))
        return {"seconds": seconds, "finite": finite, "peak_mb": _peak_mb()}


def _numpy(result: Any) -> np.ndarray:
    if type(result).__module__.startswith("torch"):
        result = result.float().cpu().numpy()
    return np.asarray(result, np.float64)


def _forget_peak() -> None:
    """Makes the process's peak memory what it holds now; only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float | None:
    """The largest resident memory since `_forget_peak`; None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6 if "VmHWM" in fields else None


def main() -> None:
    variant, device = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no reply
    server = Server(variant, device)
    reply = server.hello()
    while True:
        replies.write(json.dumps({**reply, "cpu_s": time.process_time()}) + "\n")
        line = sys.stdin.readline()
        if not line:
            return
        cpu_s = time.process_time()
        message = json.loads(line)
        reply = getattr(server, message.pop("do"))(**message) | {"cpu_s_before": cpu_s}


if __name__ == "__main__":
    main()
