"""`measure_flops` and `measure_memory`: against the traced program, XLA, and what cannot be."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import pytest

import ttm_jax
from ttm_jax import SimpleTokenTuringMachine, TokenTuringMachine, TTMModel, measure_flops, measure_memory

SMALL = dict(memory_size=7, process_size=3, num_layers=2, mlp_dim=11, num_heads=2)
CHEAP = dict(
    memory_size=64, process_size=8, num_layers=1, read="pooling", write="concat", processing="mlp"
)  # to compile


@pytest.fixture(scope="module")
def model(tiny_config):
    return TTMModel(tiny_config.model)


def traced(model, *inputs):
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.make_jaxpr(model.apply)(variables, *inputs).jaxpr


@pytest.mark.parametrize("carry_head", [True, False])
def test_the_multiplier_is_its_products(tiny_config, carry_head, products):
    config = dataclasses.replace(tiny_config.model, carry_head=carry_head)
    model = TTMModel(config)
    inputs_BxS = jax.ShapeDtypeStruct((3, config.seq_len), jnp.int32)
    assert measure_flops(model, (3, config.seq_len)) == 2 * products(traced(model, inputs_BxS))


def test_one_problem_where_no_shape_is_given(model):
    assert measure_flops(model) == measure_flops(model, (1, 12))
    assert measure_flops(model, (5, 12)) == 5 * measure_flops(model)


@pytest.mark.parametrize("machine", [TokenTuringMachine(**SMALL), SimpleTokenTuringMachine(**SMALL)], ids=type)
def test_a_machine_is_its_products_all_steps_counted(machine, products):
    tokens = jax.ShapeDtypeStruct((2, 4, 5, 16), jnp.float32)
    assert measure_flops(machine, (2, 4, 5, 16)) == 2 * products(traced(machine, tokens))


def test_within_one_percent_of_xla_with_the_places_unrolled():
    """XLA counts the body of a scan once, so the twelve places are twelve times one; the head is after the scan."""
    config = ttm_jax.ModelConfig(width=512, mlp_dim=4096, dropout_rate=0.0)
    model = TTMModel(config)
    inputs = jax.ShapeDtypeStruct((1, 12), jnp.int32)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 12), jnp.int32), num_steps=1))

    def counted(num_steps):
        lowered = jax.jit(lambda v, x: model.apply(v, x, num_steps=num_steps)).lower(variables, inputs)
        return lowered.cost_analysis()["flops"]

    one = counted(1)
    assert measure_flops(model) == pytest.approx(12 * one, rel=0.01)
    assert counted(12) < 0.2 * measure_flops(model), "XLA counts scans whole now: compare with it directly"


def test_a_multiplier_holds_its_parameters_twice_more_for_adam(model):
    state = jax.eval_shape(lambda: ttm_jax.create_state(ttm_jax.Config(model=model.config)))
    held = 3 * sum(4 * leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
    assert held < measure_memory(model, (8, 12)) < 20 * held


def test_a_multiplier_with_a_step_for_each_product_takes_more_memory(model):
    """28 machine steps in place of twelve."""
    products = TTMModel(dataclasses.replace(model.config, schedule="product"))
    assert measure_memory(products, (8, 12)) > measure_memory(model, (8, 12))


def test_memory_is_that_of_training():
    """Two copies of the tokens' size are not enough: each step's hidden layer is kept for the backward pass."""
    tokens_mb = 4 * 16 * 24 * 8 * 64 / 1e6
    assert measure_memory(TokenTuringMachine(**CHEAP), (16, 24, 8, 64)) > 5 * tokens_mb


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is Linux's")
def test_the_device_takes_about_what_was_planned():
    machine, shape = TokenTuringMachine(**CHEAP, mlp_dim=4096), (16, 24, 16, 64)
    planned = measure_memory(machine, shape)
    assert planned > 100
    first, second = (measure_memory(machine, shape, source="device") for _ in range(2))
    assert first == pytest.approx(planned, rel=0.3)
    assert second == pytest.approx(planned, rel=0.3), "what the first left for reuse is not in the way of the second"


@pytest.mark.parametrize("shape", [None, (2, 3), (2, 0, 5, 16)])
@pytest.mark.parametrize("measure", [measure_flops, measure_memory])
def test_a_machine_needs_a_shape(measure, shape):
    with pytest.raises(ValueError, match=r"input_shape must be \[B, T, N, D\], got"):
        measure(TokenTuringMachine(**SMALL), shape)


@pytest.mark.parametrize("measure", [measure_flops, measure_memory])
def test_a_multiplier_has_twelve_places(measure, model):
    with pytest.raises(ValueError, match=r"input_shape must be \[B, 12\], got \(2, 11\)"):
        measure(model, (2, 11))


def test_there_are_two_sources(model):
    with pytest.raises(ValueError, match="source must be one of program, device; got 'gpu'"):
        measure_memory(model, source="gpu")


class Silent:
    """A device that keeps no account of its memory, or one that had used more before."""

    platform = "gpu"

    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


@pytest.mark.parametrize("stats", [None, {"bytes_in_use": 10, "peak_bytes_in_use": 50}])
def test_a_device_that_cannot_say_is_an_error(model, stats, monkeypatch):
    monkeypatch.setattr("ttm_jax.measure.cost._default_device", lambda: Silent(stats))
    with pytest.raises(RuntimeError, match="doesn't say what memory the step took"):
        measure_memory(model, (8, 12), source="device")
