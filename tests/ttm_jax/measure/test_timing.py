"""Timing by a clock that only the timed functions move."""

import jax.numpy as jnp
import pytest

from ttm_jax.measure.program import Program
from ttm_jax.measure.timing import affordable_calls, spread, time_interleaved, timed_call


class Clock:
    """Time, and what was called."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now


class Lazy:
    """A result that takes its time only where it is waited for, as on a device."""

    def __init__(self, clock, seconds):
        self._clock, self._seconds = clock, seconds

    def block_until_ready(self):
        self._clock.now += self._seconds
        return self


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def function(clock):
    """`function(name, seconds, ...)`: its calls take those seconds in turn, the last for good."""

    def make(name, *seconds):
        left = list(seconds)

        def call():
            clock.log.append(name)
            return {"result": [Lazy(clock, left.pop(0) if len(left) > 1 else left[0])]}

        return call

    return make


def test_a_call_is_waited_for(clock, function):
    assert timed_call(function("a", 2.5), clock) == 2.5


def test_the_first_call_is_not_counted(clock, function):
    seconds = time_interleaved({"a": function("a", 100.0, 1.0)}, {"a": 3}, clock=clock)
    assert seconds == {"a": [1.0, 1.0, 1.0]}


def test_functions_take_turns(clock, function):
    time_interleaved({name: function(name, 1.0) for name in "abc"}, dict.fromkeys("abc", 2), clock=clock)
    assert "".join(clock.log) == "abc" + "abcabc"


@pytest.mark.parametrize("rounds", [1, 3, 4, 10])
def test_calls_are_spread_over_the_rounds(clock, function, rounds):
    told = []
    calls = {"a": 10, "b": 5}
    functions = {name: function(name, 1.0) for name in calls}
    seconds = time_interleaved(functions, calls, rounds, lambda: told.append("".join(clock.log)), clock)
    assert {name: len(times) for name, times in seconds.items()} == calls
    assert len(told) == rounds
    counted = "".join(clock.log)[2:]
    assert counted.count("ab") == min(rounds, 5)


def test_a_slow_function_gets_few_calls(clock, function):
    assert affordable_calls(function("a", 9.0, 0.5), 10.0, clock=clock) == 20
    assert affordable_calls(function("a", 9.0, 60.0), 10.0, least=5, clock=clock) == 5
    assert affordable_calls(function("a", 9.0, 0.001), 10.0, most=1000, clock=clock) == 1000
    assert affordable_calls(function("a", 0.0), 10.0, most=7, clock=clock) == 7


def test_the_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median_s": 3.0, "quartile_1_s": 2.0, "quartile_3_s": 4.0, "calls": 5}


def test_one_timing_has_no_spread():
    with pytest.raises(ValueError, match="at least two timings, got 1"):
        spread([1.0])


def test_a_program_is_called_with_what_it_was_bound_to():
    program = Program(lambda x, y: x @ y, jnp.ones((2, 3)), jnp.ones((3, 4)))
    assert program.compile_s > 0
    assert program.moved_bytes == 4 * (6 + 12 + 8)
    assert program.bind(jnp.ones((2, 3)), 2 * jnp.ones((3, 4)))()[0, 0] == 6
    temporary = program.memory["temporary"]
    planned = {"arguments": 4 * 18, "results": 4 * 8, "aliased": 0, "temporary": temporary, "peak": 4 * 26 + temporary}
    assert program.memory == planned


def test_a_program_that_carries_its_state_needs_no_second_one():
    program = Program(lambda state, x: (state + x, x), jnp.zeros(5), jnp.ones(5), carries=True)
    memory = program.memory
    assert memory["aliased"] == 20
    assert memory["peak"] == 40 + memory["results"] - 20 + memory["temporary"]
    state = jnp.zeros(5)
    step = program.bind(state, jnp.ones(5))
    assert [step()[0][0].item() for _ in range(3)] == [1, 2, 3]
    assert state.is_deleted()
