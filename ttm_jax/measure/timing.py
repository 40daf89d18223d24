"""The one way in which this project measures time.

Every call is waited for until its results exist, the first call is not counted, functions that are compared take
turns, and what is reported is the median with the quartiles.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Function = Callable[[], Any]


def timed_call(function: Function, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds from the call until all its results are computed."""
    start = clock()
    jax.block_until_ready(function())
    return clock() - start


def time_interleaved(
    functions: Mapping[str, Function],
    calls: Mapping[str, int],
    rounds: int | None = None,
    on_round: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each call in seconds, the functions taking turns: A B C A B C ...

    Args:
        functions: by name; called once each before anything is counted.
        calls: of each function, all of them counted.
        rounds: the calls of each function are spread over so many turns; a turn a call where None.
        on_round: called before each.
    """
    rounds = max(calls.values(), default=0) if rounds is None else rounds
    for function in functions.values():
        timed_call(function, clock)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for done in range(rounds):
        on_round()
        for name, function in functions.items():
            due = calls[name] * (done + 1) // rounds
            seconds[name] += [timed_call(function, clock) for _ in range(due - len(seconds[name]))]
    return seconds


def affordable_calls(
    function: Function,
    budget_s: float,
    least: int = 5,
    most: int = 1000,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Estimate how often `function` can be called within the budget, by its second call; between `least` and `most`."""
    timed_call(function, clock)
    seconds = timed_call(function, clock)
    return max(least, min(most, int(budget_s / seconds) if seconds > 0 else most))


def spread(seconds: list[float]) -> dict[str, Any]:
    """Return median and quartiles in seconds, and the number of calls; ValueError where there are fewer than two."""
    if len(seconds) < 2:
        raise ValueError(f"a spread needs at least two timings, got {len(seconds)}")
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_s": median, "quartile_1_s": low, "quartile_3_s": high, "calls": len(seconds)}
