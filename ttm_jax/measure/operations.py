"""The parts of the work, each against the ceilings of the device: what a call takes, FLOP/s, bytes/s, memory."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from ttm_jax.cli import Progress
from ttm_jax.machine.flops import TRAINING_PASSES, multiply_adds, process_cost
from ttm_jax.machine.memory import Read, make_write
from ttm_jax.machine.processing import TransformerStack, make_processor
from ttm_jax.measure.ceilings import CeilingSizes, ceiling_functions, ceiling_sizes, ceilings
from ttm_jax.measure.cost import machine_train_step, measure_flops
from ttm_jax.measure.program import Program, Turns
from ttm_jax.measure.report import Table, median, percent, planned_memory, quartiles, scaled
from ttm_jax.measure.timing import affordable_calls
from ttm_jax.measure.workload import normal, random_variables, training_batch, training_flops
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.model import TTMModel, make_machine
from ttm_jax.multiplication.objective import create_state
from ttm_jax.multiplication.vocab import VOCAB_SIZE
from ttm_jax.tasks import load_config
from ttm_jax.training.step import train_step

TITLE, FLAG = "Operations", ""
EMPTY_CALL = "empty call"
OF_GIVEN_CALLS = "matrix product", "token embedding", "Transformer forward"
ROUNDS = 10  # over which the calls are spread
QUICK = {"budget_s": 1.0, "calls": None}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the operations, `num_steps` in machine steps; width, memory and blocks are the config's."""

    product: int = 512
    sequences: int = 1000
    batch_size: int = 32
    num_tokens: int = 16
    num_steps: int = 12


@dataclass(frozen=True)
class Operation:
    """What is timed: a function of its arguments, and its floating-point operations in closed form.

    With `carries`, the first argument is a state that the first result replaces.
    """

    name: str
    size: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: int
    carries: bool = False


def measure(
    device: jax.Device,
    progress: Progress,
    sizes: Sizes = Sizes(),
    config: Config | None = None,
    ceiling: CeilingSizes | None = None,
    budget_s: float = 10.0,
    calls: int | None = 1000,
) -> dict[str, Any]:
    """Time every operation on `device` for `budget_s` seconds, or those of OF_GIVEN_CALLS for `calls` calls."""
    config = config or load_config("three_digits")
    ceiling = ceiling or ceiling_sizes(device)
    turns, rows = Turns(device, budget_s), []
    with jax.default_device(device):
        progress.plan(1)
        progress.step("initialising")
        operations = [operation for part in PARTS for operation in part(sizes, config)]
        progress.plan(len(operations) + 1 + ROUNDS)
        programs = {}
        for operation in operations:
            progress.step(f"compiling: {operation.name}")
            program = Program(operation.function, *operation.arguments, carries=operation.carries)
            turns.enter(operation.name, program, *operation.arguments)
            programs[operation.name] = program
        progress.step("compiling: ceilings")
        turns.calls |= dict.fromkeys(OF_GIVEN_CALLS, calls) if calls else {}
        for name, function in ceiling_functions(ceiling).items():
            turns.functions[name], turns.calls[name] = function, affordable_calls(function, budget_s, most=100)
        timed = turns.time(ROUNDS, lambda: progress.step("timing"))
    measured = ceilings(ceiling, timed)
    for operation in operations:
        row: dict[str, Any] = {"name": operation.name, "size": operation.size, **timed[operation.name]}
        if "skipped" not in row:
            for of, number in (("flops", operation.flops), ("bytes", programs[operation.name].moved_bytes)):
                rate = number / row["median_s"]
                row |= {of: number, f"{of}_per_s": rate, f"{of}_fraction": rate / measured[f"{of}_per_s"]}
        rows.append(row)
    precision = jax.config.values["jax_default_matmul_precision"]
    return {"dtype": "float32", "precision": precision, "sizes": asdict(sizes), "ceilings": measured, "rows": rows}


def _common_operations(sizes: Sizes, config: Config) -> Iterator[Operation]:
    yield Operation(EMPTY_CALL, "", lambda x: x + 1, (jnp.zeros(()),), 0)
    n = sizes.product
    matrices = normal(n, n), normal(n, n)
    yield Operation("matrix product", f"{n} x {n}", jnp.matmul, matrices, 2 * n**3)

    c = config.model
    embedding = nn.Embed(VOCAB_SIZE, c.width)
    tokens_BxS = jnp.arange(sizes.sequences * c.seq_len).reshape(-1, c.seq_len) % VOCAB_SIZE
    table = random_variables(embedding, tokens_BxS)
    size = f"{sizes.sequences:,} x {c.seq_len}"
    yield Operation("token embedding", size, embedding.apply, (table, tokens_BxS), 0)

    B, R = sizes.batch_size, c.process_size
    transformer = TransformerStack(c.num_layers, c.num_heads, c.mlp_dim)
    tokens_BxRxD = normal(B, R, c.width)
    params = random_variables(transformer, tokens_BxRxD)
    machine = make_machine(replace(c, processing="transformer"))
    flops = 2 * B * process_cost(machine, R, c.width)
    yield Operation("Transformer forward", "", transformer.apply, (params, tokens_BxRxD), flops)


def _machine_operations(sizes: Sizes, config: Config) -> Iterator[Operation]:
    c, machine = config.model, make_machine(config.model)
    B, T, N, D = sizes.batch_size, sizes.num_steps, sizes.num_tokens, c.width
    memory_BxMxD, output_BxRxD = normal(B, c.memory_size, D), normal(B, c.process_size, D)
    tokens_BxNxD, tokens_BxTxNxD = normal(B, N, D), normal(B, T, N, D)
    cost = multiply_adds(machine, N, D)
    settings = dict(num_heads=c.num_heads, positions=c.positions)
    processor = make_processor(c.processing, num_layers=c.num_layers, mlp_dim=c.mlp_dim, num_heads=c.num_heads)
    parts = (
        ("read", Read(c.process_size, c.read, **settings), (memory_BxMxD, tokens_BxNxD), cost.read),
        ("process", processor, (output_BxRxD,), cost.process),
        ("write", make_write(c.write, **settings), (memory_BxMxD, output_BxRxD, tokens_BxNxD), cost.write),
        ("whole step", machine, (tokens_BxNxD[:, None], memory_BxMxD), cost.total),
    )
    for name, module, inputs, multiplications in parts:
        variables = random_variables(module, *inputs)
        yield Operation(name, "", module.apply, (variables, *inputs), 2 * B * multiplications)

    optimizer = optax.adam(1e-3)
    variables = random_variables(machine, tokens_BxNxD[:, None], memory_BxMxD)  # its own: they are donated
    state = variables, jax.jit(optimizer.init)(variables)
    flops = TRAINING_PASSES * measure_flops(machine, (B, T, N, D))
    train = machine_train_step(machine, optimizer)
    yield Operation("train step", f"{T} steps", train, (state, tokens_BxTxNxD), flops, carries=True)


def _multiplier_operations(sizes: Sizes, config: Config) -> Iterator[Operation]:
    B, S = sizes.batch_size, config.model.seq_len
    state, batch = create_state(config), training_batch(config, B)
    variables = {"params": jax.tree.map(jnp.copy, state.params)}  # the training step takes the state's own
    inputs_BxS = jnp.asarray(batch["inputs"])
    model = TTMModel(config.model)
    flops = measure_flops(model, (B, S))
    yield Operation("multiplier", f"{S} places", model.apply, (variables, inputs_BxS), flops)
    T = batch["targets"].shape[1]
    size, flops = f"{T} places", training_flops(config, B, T)
    yield Operation("multiplier train", size, train_step, (state, batch), flops, carries=True)


PARTS = _common_operations, _machine_operations, _multiplier_operations


def tables(section: dict[str, Any]) -> list[Table]:
    """Make tables of the ceilings, of a call of every operation, and of its rates against the ceilings."""
    ceiling, precision = section["ceilings"], section["precision"] or "default"
    product, copy = ceiling["product"], ceiling["copy"]
    rates = scaled(ceiling["flops_per_s"], "FLOP/s"), scaled(ceiling["bytes_per_s"], "B/s")
    ceiling_rows = [
        [f"product of {product['size']} x {product['size']}", median(product), quartiles(product), rates[0]],
        [f"copy of {scaled(copy['bytes'], 'B')}", median(copy), quartiles(copy), rates[1]],
    ]
    calls, reached = [], []
    for row in section["rows"]:
        label = ", ".join(filter(None, (row["name"], row["size"])))
        calls.append([label, median(row), quartiles(row), f"{row.get('calls', 0):,}", planned_memory(row)])
        if row["name"] == EMPTY_CALL or "skipped" in row:
            continue
        flops = [scaled(row["flops_per_s"], "FLOP/s"), percent(row["flops_fraction"])] if row["flops"] else "--"
        reached.append([label, *flops, scaled(row["bytes_per_s"], "B/s"), percent(row["bytes_fraction"])])
    what = f"{section['dtype']}, {precision} matrix precision, batch {section['sizes']['batch_size']}"
    return [
        Table("ceilings", ["ceiling", "median", "quartiles", "rate"], ceiling_rows),
        Table(f"a call: {what}", ["operation", "median", "quartiles", "calls", "memory"], calls),
        Table(f"rates: {what}", ["operation", "FLOP/s", "of ceiling", "bytes/s", "of ceiling"], reached),
    ]
