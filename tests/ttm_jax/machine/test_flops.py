"""The closed form of multiply-adds: against the traced program, XLA's count and the paper."""

import jax
import jax.numpy as jnp
import pytest

from ttm_jax.machine.flops import forward_flops, multiply_adds
from ttm_jax.machine.machine import (
    SimpleTokenTuringMachine,
    SimpleTokenTuringMachineStep,
    TokenTuringMachine,
    TokenTuringMachineStep,
)
from ttm_jax.machine.memory import READS, WRITES
from ttm_jax.machine.processing import PROCESSING_UNITS

WIDTH = 768  # of the paper
PAPER = dict(memory_size=96, process_size=16, num_layers=4, mlp_dim=512, num_heads=12)
SMALL = dict(memory_size=7, process_size=3, num_layers=2, mlp_dim=11, num_heads=2)
SCENIC = [("mlp", "mlp"), ("query", "query"), ("mlp", "erase_add")]


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def traced_cost(products, step, num_tokens, width):
    inputs = abstract(1, step.memory_size, width), abstract(1, num_tokens, width)
    variables = jax.eval_shape(step.init, jax.random.key(0), *inputs)
    return products(jax.make_jaxpr(step.apply)(variables, *inputs).jaxpr)


def check_exact(products, step, num_tokens=5, width=16):
    cost = multiply_adds(step, num_tokens, width)
    assert cost.total == cost.read + cost.process + cost.write
    assert cost.total == traced_cost(products, step, num_tokens, width)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("unit", PROCESSING_UNITS)
def test_equals_the_products_of_the_program(read, write, unit, products):
    check_exact(products, TokenTuringMachineStep(read=read, write=write, processing=unit, **SMALL))


@pytest.mark.parametrize(("read", "write"), SCENIC)
def test_equals_the_products_of_the_program_under_scenic(read, write, products):
    check_exact(products, TokenTuringMachineStep(read=read, write=write, compat="scenic", **SMALL))


@pytest.mark.parametrize("compat", [None, "scenic"])
@pytest.mark.parametrize("unit", PROCESSING_UNITS)
def test_equals_the_products_of_the_simple_program(unit, compat, products):
    check_exact(products, SimpleTokenTuringMachineStep(processing=unit, compat=compat, **SMALL))


def test_parts_are_those_of_the_step():
    """With nothing to read or to write, what remains is the processing unit, and so on."""

    def cost(**modes):
        return multiply_adds(TokenTuringMachine(**(SMALL | modes)), 5, 16)

    only_process = cost(read="pooling", write="none")
    assert (only_process.read, only_process.write) == (0, 0)
    assert only_process.process == cost().process > 0
    assert cost(write="none") == cost(write="concat")
    assert cost(write="none").read == cost().read > 0
    assert cost(num_layers=4).process == 2 * cost().process


def xla_count(step, steps, num_tokens, width):
    """Multiply-adds by XLA's count of the steps unrolled: half its operations, a product being two."""

    def unrolled(variables, memory, tokens):
        outputs = []
        for t in range(steps):
            memory, output = step.apply(variables, memory, tokens[:, t])
            outputs.append(output)
        return memory, outputs

    memory, tokens = abstract(1, step.memory_size, width), abstract(1, steps, num_tokens, width)
    variables = jax.eval_shape(step.init, jax.random.key(0), memory, abstract(1, num_tokens, width))
    return jax.jit(unrolled).lower(variables, memory, tokens).cost_analysis()["flops"] / 2


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_within_one_percent_of_xla_at_the_size_of_the_paper(steps):
    counted = xla_count(TokenTuringMachineStep(**PAPER), steps, 16, WIDTH)
    closed = steps * multiply_adds(TokenTuringMachine(**PAPER), 16, WIDTH).total
    assert closed == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "step",
    [
        TokenTuringMachineStep(read=read, write=write, processing=unit, **PAPER | dict(mlp_dim=4096, process_size=64))
        for read, write, unit in (
            ("query", "query", "mixer"),
            ("mlp", "erase_add", "mlp"),
            ("mlp", "concat", "mixer"),
            ("pooling", "pooling", "transformer"),
        )
    ]
    + [SimpleTokenTuringMachineStep(**PAPER)],
    ids=lambda step: f"{getattr(step, 'write', 'simple')}-{step.processing}",
)
def test_within_one_percent_of_xla_where_products_dominate(step):
    """XLA counts elementwise operations too: 4 % of the paper's Mixer, so here the MLPs are wider."""
    closed = 2 * multiply_adds(step, 16, WIDTH).total
    assert closed == pytest.approx(xla_count(step, 2, 16, WIDTH), rel=0.01)


@pytest.mark.parametrize(
    ("modes", "num_tokens", "giga"),
    [
        (dict(compat="scenic"), 3136, 0.842),
        (dict(compat="scenic"), 16, 0.228),
        (dict(compat="scenic", processing="mixer"), 3136, 0.704),
        (dict(compat="scenic", processing="mixer"), 16, 0.089),
        (dict(compat="scenic", processing="mlp"), 3136, 0.689),
        (dict(compat="scenic", read="query", write="query"), 3136, 8.537),
        (dict(compat="scenic", write="erase_add"), 3136, 0.423),
        (dict(read="pooling", write="pooling"), 3136, 0.206),
    ],
)
def test_within_three_percent_of_the_paper(modes, num_tokens, giga):
    found = multiply_adds(TokenTuringMachine(**PAPER, **modes), num_tokens, WIDTH).total / 1e9
    assert found == pytest.approx(giga, rel=0.03)


def test_a_forward_pass_is_two_operations_a_multiply_add():
    machine = SimpleTokenTuringMachine(**SMALL)
    assert forward_flops(machine, 5, 16, steps=3, batch=4) == 2 * 3 * 4 * multiply_adds(machine, 5, 16).total


@pytest.mark.parametrize(("num_tokens", "width", "name"), [(0, 16, "num_tokens"), (5, -1, "width")])
def test_impossible_sizes_are_refused(num_tokens, width, name):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        multiply_adds(TokenTuringMachine(), num_tokens, width)
