"""What a step costs against the length of the history: the machine, and a causal Transformer of equal width and depth.

At every step both take the same N new tokens through L blocks of the same heads and MLP width. The machine has read
all earlier steps into M memory tokens; the Transformer attends to all earlier tokens, N a step, in its key-value cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ttm_jax.machine.causal_transformer import Cache, CausalTransformer
from ttm_jax.machine.flops import causal_step_cost, multiply_adds
from ttm_jax.measure.program import Program
from ttm_jax.measure.progress import Progress
from ttm_jax.measure.report import Table, median, peak, scaled, times
from ttm_jax.measure.timing import affordable_calls, spread, time_interleaved
from ttm_jax.measure.workload import normal, random_variables, too_large
from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.multiplication.model import make_machine

LENGTHS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
QUICK_LENGTHS = (10, 100, 1000)
ROUNDS = 5  # several calls a turn: a single one would find its weights driven out of the caches by the other model
MACHINE, TRANSFORMER = "machine", "transformer"
LABELS = {MACHINE: "machine", TRANSFORMER: "Transformer"}


@dataclass(frozen=True)
class Sizes:
    """Of both models: B sequences, N tokens a step; width, blocks and the machine's memory are those of `model`."""

    batch_size: int = 1
    num_tokens: int = 16
    model: ModelConfig = field(default_factory=ModelConfig)


def measure(
    device: jax.Device,
    quick: bool,
    progress: Progress,
    sizes: Sizes = Sizes(),
    lengths: Sequence[int] | None = None,
    budget_s: float | None = None,
    longest_call_s: float | None = None,
) -> dict[str, Any]:
    """Time and memory of a step after each of `lengths` steps, and of whole sequences of that many.

    Whole sequences end where a call would take longer than `longest_call_s` seconds (20, or 2 in a quick run).
    """
    lengths = (QUICK_LENGTHS if quick else LENGTHS) if lengths is None else lengths
    budget_s = (0.5 if quick else 5.0) if budget_s is None else budget_s
    longest_call_s = (2.0 if quick else 20.0) if longest_call_s is None else longest_call_s
    with jax.default_device(device):
        progress.plan(1 + 2 * len(lengths))
        progress.step("initialising")
        models = Models(sizes)
        streaming = [_streaming_row(models, device, steps, budget_s, progress) for steps in sorted(lengths)]
        whole: list[dict[str, Any]] = []
        for steps in sorted(lengths):
            progress.step(f"whole sequence of {steps:,} steps")
            whole.append(_whole_row(models, device, steps, budget_s, longest_call_s, whole))
    return {
        "sizes": asdict(sizes),
        "parameters": {
            name: sum(leaf.size for leaf in jax.tree.leaves(variables))
            for name, variables in ((MACHINE, models.machine_variables), (TRANSFORMER, models.transformer_variables))
        },
        "streaming": streaming,
        "whole": whole,
        "wins": {
            "streaming_time": wins_from(streaming, lambda cost: cost["median_s"]),
            "streaming_memory": wins_from(streaming, _peak_bytes),
            "whole_time": wins_from(whole, lambda cost: cost["median_s"]),
            "whole_memory": wins_from(whole, _peak_bytes),
        },
    }


def wins_from(rows: list[dict[str, Any]], cost: Callable[[dict[str, Any]], float | None]) -> int | None:
    """The shortest measured history from which on the machine costs less at every length where both were measured.

    None where there is no such length.
    """
    first = None
    for row in rows:
        ours, theirs = (None if "skipped" in row[name] else cost(row[name]) for name in (MACHINE, TRANSFORMER))
        if ours is None or theirs is None:
            continue
        if ours >= theirs:
            first = None
        elif first is None:
            first = row["steps"]
    return first


def _peak_bytes(cost: dict[str, Any]) -> int | None:
    return None if cost["memory"] is None else cost["memory"]["peak"]


class Models:
    """Both models with random parameters, and the machine's memory after the steps that it has made so far."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        model = sizes.model
        self.machine = make_machine(model)
        self.transformer = CausalTransformer(model.num_layers, model.num_heads, model.mlp_dim)
        self.tokens_BxNxD = normal(sizes.batch_size, sizes.num_tokens, model.width)
        tokens_Bx1xNxD = self.tokens_BxNxD[:, None]
        self.machine_variables = random_variables(self.machine, tokens_Bx1xNxD)
        self.transformer_variables = random_variables(self.transformer, self.tokens_BxNxD)
        _, self.memory_BxMxD = jax.jit(self.machine.apply)(self.machine_variables, tokens_Bx1xNxD)
        self.steps = 1
        self.machine_program = Program(
            self.machine_step, self.memory_BxMxD, self.machine_variables, self.tokens_BxNxD, carries=True
        )
        self._advance = jax.jit(self._make_steps)

    def advance(self, steps: int) -> None:
        """Runs the machine until it has made `steps` steps, each on new random tokens."""
        self.memory_BxMxD = self._advance(self.machine_variables, self.memory_BxMxD, self.steps, steps)
        self.steps = steps

    def _make_steps(self, variables: Any, memory_BxMxD: jax.Array, start: jax.Array, stop: jax.Array) -> jax.Array:
        def step(i: jax.Array, memory_BxMxD: jax.Array) -> jax.Array:
            tokens_BxNxD = jax.random.normal(jax.random.fold_in(jax.random.key(3), i), self.tokens_BxNxD.shape)
            return self.machine_step(memory_BxMxD, variables, tokens_BxNxD)[0]

        return jax.lax.fori_loop(start, stop, step, memory_BxMxD)

    def machine_step(
        self, memory_BxMxD: jax.Array, variables: Any, tokens_BxNxD: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        results: Any = self.machine.apply(variables, tokens_BxNxD[:, None], memory=memory_BxMxD)
        outputs_Bx1xRxD, memory_BxMxD = results
        return memory_BxMxD, outputs_Bx1xRxD

    def transformer_step(self, cache: Cache, variables: Any, tokens_BxNxD: jax.Array) -> tuple[Cache, jax.Array]:
        """One step that leaves the cache's length as it was, so that the next call is a step after as many."""
        results: Any = self.transformer.apply(variables, tokens_BxNxD, cache)
        outputs_BxNxD, after = results
        return after._replace(length=cache.length), outputs_BxNxD

    def empty_cache(self, steps: int) -> Cache:
        """A cache that is full after one more step; of zeros, for what it holds changes neither time nor memory."""
        sizes = self.sizes
        cache = self.transformer.empty_cache(sizes.batch_size, (steps + 1) * sizes.num_tokens, sizes.model.width)
        return cache._replace(length=jnp.int32(steps * sizes.num_tokens))


def _streaming_row(
    models: Models, device: jax.Device, steps: int, budget_s: float, progress: Progress
) -> dict[str, Any]:
    progress.step(f"streaming: the machine makes {steps:,} steps")
    models.advance(steps)
    sizes = models.sizes
    functions = {
        MACHINE: models.machine_program.bind(
            jnp.copy(models.memory_BxMxD), models.machine_variables, models.tokens_BxNxD
        )
    }
    cache = jax.eval_shape(lambda: models.empty_cache(steps))
    program = Program(models.transformer_step, cache, models.transformer_variables, models.tokens_BxNxD, carries=True)
    programs = {MACHINE: models.machine_program, TRANSFORMER: program}
    flops = {
        MACHINE: 2 * multiply_adds(models.machine, sizes.num_tokens, sizes.model.width).total,
        TRANSFORMER: 2
        * causal_step_cost(models.transformer, sizes.num_tokens, steps * sizes.num_tokens, sizes.model.width),
    }
    skipped = {}
    if reason := too_large(program, device):
        skipped[TRANSFORMER] = reason
    else:
        functions[TRANSFORMER] = program.bind(
            models.empty_cache(steps), models.transformer_variables, models.tokens_BxNxD
        )
    return _row(steps, functions, programs, flops, skipped, sizes.batch_size, budget_s)


def _whole_row(
    models: Models,
    device: jax.Device,
    steps: int,
    budget_s: float,
    longest_call_s: float,
    shorter: list[dict[str, Any]],
) -> dict[str, Any]:
    sizes = models.sizes
    B, N, D = sizes.batch_size, sizes.num_tokens, sizes.model.width
    flops = {
        MACHINE: 2 * steps * multiply_adds(models.machine, N, D).total,
        TRANSFORMER: 2 * causal_step_cost(models.transformer, steps * N, 0, D),
    }
    cases = {
        MACHINE: (models.machine.apply, models.machine_variables, (B, steps, N, D)),
        TRANSFORMER: (
            lambda *inputs: models.transformer.apply(*inputs)[0],
            models.transformer_variables,
            (B, steps * N, D),
        ),
    }
    functions, programs, skipped = {}, {}, {}
    for name, (apply, variables, shape) in cases.items():
        if reason := too_long(name, B * flops[name], shorter, longest_call_s):
            skipped[name] = reason
            continue
        program = Program(apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32))
        if reason := too_large(program, device):
            skipped[name] = reason
            continue
        programs[name] = program
        functions[name] = program.bind(variables, normal(*shape))
    return _row(steps, functions, programs, flops, skipped, B, budget_s)


def _row(
    steps: int,
    functions: dict[str, Callable[[], Any]],
    programs: dict[str, Program],
    flops: dict[str, int],
    skipped: dict[str, str],
    batch_size: int,
    budget_s: float,
) -> dict[str, Any]:
    """Times what there is, in turns."""
    row: dict[str, Any] = {"steps": steps, **{name: {"skipped": reason} for name, reason in skipped.items()}}
    if functions:
        calls = {name: affordable_calls(function, budget_s, most=100) for name, function in functions.items()}
        for name, seconds in time_interleaved(functions, calls, ROUNDS).items():
            memory = programs[name].memory_dict()
            row[name] = {**spread(seconds), "flops": batch_size * flops[name], "memory": memory}
    return row


def too_long(name: str, flops: int, shorter: list[dict[str, Any]], longest_call_s: float) -> str | None:
    """Why a whole sequence is not run: what it would take at the speed of the last measured; None if short."""
    measured = [row[name] for row in shorter if "skipped" not in row[name]]
    if not measured:
        return None
    expected = measured[-1]["median_s"] * flops / measured[-1]["flops"]
    return f"would take about {scaled(expected, 's')}" if expected > longest_call_s else None


def tables(section: dict[str, Any]) -> list[Table]:
    """Streaming steps and whole sequences, both models side by side."""
    headings = ["steps", "machine", "Transformer", "ratio", "machine, memory", "Transformer, memory", "ratio"]
    titles = {
        "streaming": "streaming, one more step after so many: median and planned peak memory, Transformer / machine",
        "whole": "whole sequences of so many steps, forward: median and planned peak memory, Transformer / machine",
    }
    return [Table(titles[form], headings, [_cells(row) for row in section[form]]) for form in titles]


def _cells(row: dict[str, Any]) -> list[str]:
    machine, transformer = row[MACHINE], row[TRANSFORMER]
    shown = [
        ["not run"] * 2 if "skipped" in cost else [median(cost), peak(cost["memory"])]
        for cost in (machine, transformer)
    ]
    ratios = [None, None]
    if not ("skipped" in machine or "skipped" in transformer):
        ratios[0] = transformer["median_s"] / machine["median_s"]
        if machine["memory"] and transformer["memory"]:
            ratios[1] = transformer["memory"]["peak"] / machine["memory"]["peak"]
    (machine_time, machine_memory), (transformer_time, transformer_memory) = shown
    return [
        f"{row['steps']:,}",
        machine_time,
        transformer_time,
        "-" if ratios[0] is None else times(ratios[0]),
        machine_memory,
        transformer_memory,
        "-" if ratios[1] is None else times(ratios[1]),
    ]


def notes(section: dict[str, Any]) -> list[str]:
    """How the cost of a step grows, and from which length on the machine costs less."""
    streaming, wins = section["streaming"], section["wins"]
    grown = "; ".join(filter(None, (_growth(name, streaming) for name in (MACHINE, TRANSFORMER))))
    forms = [
        f"{form}, it takes less time {_from(wins[f'{key}_time'])} and less memory {_from(wins[f'{key}_memory'])}"
        for key, form in (("streaming", "streaming"), ("whole", "over whole sequences"))
    ]
    parameters, last = section["parameters"], streaming[-1]
    found = [
        f"A streaming step: {grown}.",
        f"The machine against the Transformer: {'; '.join(forms)}.",
        f"Parameters: {parameters[MACHINE]:,} and {parameters[TRANSFORMER]:,}.",
    ]
    if "skipped" not in last[MACHINE] and "skipped" not in last[TRANSFORMER]:
        operations = [scaled(last[name]["flops"], "FLOP") for name in (MACHINE, TRANSFORMER)]
        found.append(f"Floating-point operations of the last streaming step: {' and '.join(operations)}.")
    for form, what in (("streaming", "Streaming"), ("whole", "Whole sequences")):
        for name in (MACHINE, TRANSFORMER):
            skipped = [row for row in section[form] if "skipped" in row[name]]
            if skipped:
                first = skipped[0]
                found.append(
                    f"{what}: the {LABELS[name]} was not run at {first['steps']:,} steps: it {first[name]['skipped']}."
                )
    return found


def _growth(name: str, rows: list[dict[str, Any]]) -> str | None:
    measured = [row for row in rows if "skipped" not in row[name]]
    if not measured:
        return None
    first, last = measured[0], measured[-1]
    ratio = last[name]["median_s"] / first[name]["median_s"]
    costs = (f"{median(row[name])} after {row['steps']:,} steps" for row in (first, last))
    return f"the {LABELS[name]}'s takes {' and '.join(costs)} ({times(ratio)})"


def _from(steps: int | None) -> str:
    return "at no measured length" if steps is None else f"from {steps:,} steps on"
