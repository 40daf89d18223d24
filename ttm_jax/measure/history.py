"""What a step costs against the length of the history: the machine, and a causal Transformer of equal width and depth.

At every step both take the same N new tokens through L blocks of the same heads and MLP width. The machine has read
all earlier steps into M memory tokens; the Transformer attends to all earlier tokens, N a step, in its key-value cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ttm_jax.cli import Progress
from ttm_jax.machine.causal_transformer import Cache, CausalTransformer
from ttm_jax.machine.flops import causal_step_cost, multiply_adds
from ttm_jax.measure.program import Program, Turns
from ttm_jax.measure.report import Table, median, planned, planned_memory, ratio, scaled, times
from ttm_jax.measure.workload import normal, random_variables
from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.multiplication.model import make_machine
from ttm_jax.plotting import pyplot

TITLE, FLAG = "Length of the history", "--history"
LENGTHS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
QUICK = {"lengths": (10, 100, 1000), "budget_s": 0.5, "longest_call_s": 2.0}
ROUNDS = 5  # several calls a turn: a single one would find its weights driven out of the caches by the other model
MACHINE, TRANSFORMER = MODELS = "machine", "transformer"


@dataclass(frozen=True)
class Sizes:
    """Sizes of both models: B sequences, N tokens a step; width, blocks and the machine's memory are `model`'s."""

    batch_size: int = 1
    num_tokens: int = 16
    model: ModelConfig = field(default_factory=ModelConfig)


def measure(
    device: jax.Device,
    progress: Progress,
    sizes: Sizes = Sizes(),
    lengths: Sequence[int] = LENGTHS,
    budget_s: float = 5.0,
    longest_call_s: float = 20.0,
) -> dict[str, Any]:
    """Measure time and memory of a step after each of `lengths` steps, and of whole sequences of that many.

    Whole sequences end where a call would take longer than `longest_call_s` seconds.
    """
    streaming, whole = [], []
    with jax.default_device(device):
        progress.plan(1 + 2 * len(lengths))
        progress.step("initialising")
        models = Models(sizes)
        for steps in sorted(lengths):
            progress.step(f"streaming: the machine makes {steps:,} steps")
            streaming.append(_streaming_row(models, Turns(device, budget_s, most=100), steps))
        for steps in sorted(lengths):
            progress.step(f"whole sequence of {steps:,} steps")
            whole.append(_whole_row(models, Turns(device, budget_s, most=100), steps, whole, longest_call_s))
    variables = {MACHINE: models.machine_variables, TRANSFORMER: models.transformer_variables}
    rows, costs = {"streaming": streaming, "whole": whole}, {"time": lambda row: row["median_s"], "memory": planned}
    return {
        "sizes": asdict(sizes),
        "parameters": {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables.items()},
        **rows,
        "wins": {f"{form}_{of}": wins_from(rows[form], costs[of]) for form in rows for of in costs},
    }


def wins_from(rows: list[dict[str, Any]], cost: Callable[[dict[str, Any]], float | None]) -> int | None:
    """Find the shortest history from which on the machine costs less at every length where both were measured.

    None where there is no such length.
    """
    first = None
    for row in rows:
        ours, theirs = (None if "skipped" in row[name] else cost(row[name]) for name in MODELS)
        if ours is None or theirs is None:
            continue
        if ours >= theirs:
            first = None
        elif first is None:
            first = row["steps"]
    return first


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
        state = self.memory_BxMxD, self.machine_variables, self.tokens_BxNxD
        self.machine_program = Program(self.machine_step, *state, carries=True)
        self._advance = jax.jit(self._make_steps)

    def advance(self, steps: int) -> None:
        """Run the machine until it has made `steps` steps, each on new random tokens."""
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
        """Make one step that leaves the cache's length as it was, so that the next call is a step after as many."""
        results: Any = self.transformer.apply(variables, tokens_BxNxD, cache)
        outputs_BxNxD, after = results
        return after._replace(length=cache.length), outputs_BxNxD

    def transformer_outputs(self, *inputs: Any) -> jax.Array:
        """Compute the outputs of whole sequences."""
        return self.transformer.apply(*inputs)[0]

    def empty_cache(self, steps: int) -> Cache:
        """Make a cache that is full after one more step; of zeros, since what it holds changes no time or memory."""
        sizes = self.sizes
        cache = self.transformer.empty_cache(sizes.batch_size, (steps + 1) * sizes.num_tokens, sizes.model.width)
        return cache._replace(length=jnp.int32(steps * sizes.num_tokens))


def _streaming_row(models: Models, turns: Turns, steps: int) -> dict[str, Any]:
    models.advance(steps)
    sizes, tokens, variables = models.sizes, models.tokens_BxNxD, models.transformer_variables
    memory_BxMxD = jnp.copy(models.memory_BxMxD)  # it is donated
    turns.enter(MACHINE, models.machine_program, memory_BxMxD, models.machine_variables, tokens)
    cache = jax.eval_shape(lambda: models.empty_cache(steps))
    program = Program(models.transformer_step, cache, variables, tokens, carries=True)
    if turns.fits(TRANSFORMER, program):  # only then is there room for the cache
        turns.functions[TRANSFORMER] = program.bind(models.empty_cache(steps), variables, tokens)
    N, D = sizes.num_tokens, sizes.model.width
    flops = {
        MACHINE: 2 * multiply_adds(models.machine, N, D).total,
        TRANSFORMER: 2 * causal_step_cost(models.transformer, N, steps * N, D),
    }
    return _row(turns, steps, sizes.batch_size, flops)


def _whole_row(
    models: Models, turns: Turns, steps: int, shorter: list[dict[str, Any]], longest_call_s: float
) -> dict[str, Any]:
    B, N, D = models.sizes.batch_size, models.sizes.num_tokens, models.sizes.model.width
    flops = {
        MACHINE: 2 * steps * multiply_adds(models.machine, N, D).total,
        TRANSFORMER: 2 * causal_step_cost(models.transformer, steps * N, 0, D),
    }
    cases = {
        MACHINE: (models.machine.apply, models.machine_variables, (B, steps, N, D)),
        TRANSFORMER: (models.transformer_outputs, models.transformer_variables, (B, steps * N, D)),
    }
    for name, (apply, variables, shape) in cases.items():
        if reason := too_long(name, B * flops[name], shorter, longest_call_s):
            turns.rows[name] = {"skipped": reason}
            continue
        program = Program(apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32))
        if turns.fits(name, program):
            turns.functions[name] = program.bind(variables, normal(*shape))
    return _row(turns, steps, B, flops)


def _row(turns: Turns, steps: int, batch_size: int, flops: dict[str, int]) -> dict[str, Any]:
    timed = turns.time(ROUNDS)
    return {"steps": steps, **{name: {**timed[name], "flops": batch_size * flops[name]} for name in MODELS}}


def too_long(name: str, flops: int, shorter: list[dict[str, Any]], longest_call_s: float) -> str | None:
    """Say why a whole sequence is not run: what it would take at the speed of the last measured; None if short."""
    measured = [row[name] for row in shorter if "skipped" not in row[name]]
    if not measured:
        return None
    expected = measured[-1]["median_s"] * flops / measured[-1]["flops"]
    return f"would take about {scaled(expected, 's')}" if expected > longest_call_s else None


def tables(section: dict[str, Any]) -> list[Table]:
    """Make tables of streaming steps and whole sequences, both models side by side; and of where the machine wins."""
    headings = ["steps", "machine", "Transformer", "ratio", "machine, memory", "Transformer, memory", "ratio"]
    titles = {
        "streaming": "streaming, one more step after so many: median and planned peak memory, Transformer / machine",
        "whole": "whole sequences of so many steps, forward: median and planned peak memory, Transformer / machine",
    }
    found = [Table(titles[form], headings, [_cells(row) for row in section[form]]) for form in titles]
    return [*found, _summary(section)]


def _cells(row: dict[str, Any]) -> list[str]:
    machine, transformer = row[MACHINE], row[TRANSFORMER]
    seconds = ratio(transformer.get("median_s"), machine.get("median_s"))
    held = ratio(planned(transformer), planned(machine))
    return [
        *(f"{row['steps']:,}", median(machine), median(transformer), "-" if seconds is None else times(seconds)),
        *(planned_memory(machine), planned_memory(transformer), "-" if held is None else times(held)),
    ]


def _summary(section: dict[str, Any]) -> Table:
    """Make the table of each model's size, and of where the machine costs less."""
    facts = [["parameters", *(f"{section['parameters'][name]:,}" for name in MODELS)]]
    for key, steps in section["wins"].items():
        form, of = key.split("_")
        facts.append([f"less {of}, {form}", "never" if steps is None else f"from {steps:,} steps on", "-"])
    return Table("both models, and the lengths from which on the machine costs less", ["", *MODELS], facts)


def draw(section: dict[str, Any], path: Path) -> Path:
    """Draw time and memory of both models, streaming and of whole sequences, as a PNG; return its path."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True, layout="constrained")
    forms = (("streaming", "a streaming step after"), ("whole", "a whole sequence of"))
    lines = ((MACHINE, "Token Turing Machine", "o-"), (TRANSFORMER, "causal Transformer", "s--"))
    for (time, held), (form, what) in zip(axes, forms, strict=True):
        for name, label, style in lines:
            measured = [(row["steps"], row[name]) for row in section[form] if "skipped" not in row[name]]
            steps = [steps for steps, _ in measured]
            middle, low, high = (
                [1e3 * cost[key] for _, cost in measured] for key in ("median_s", "quartile_1_s", "quartile_3_s")
            )
            (line,) = time.loglog(steps, middle, style, label=label, markersize=4)
            time.fill_between(steps, low, high, alpha=0.25, color=line.get_color(), linewidth=0)
            megabytes = [(planned(cost) or float("nan")) / 1e6 for _, cost in measured]
            held.loglog(steps, megabytes, style, label=label, markersize=4)
        time.set(title=f"time of {what} n steps", ylabel="ms")
        held.set(title=f"planned peak memory of {what} n steps", ylabel="MB")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    for axis in axes[1]:
        axis.set(xlabel="n, steps")
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)
    return path
