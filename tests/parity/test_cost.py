"""What a forward pass costs: JAX has it in closed form, the twin counts the products that it runs."""

import dataclasses
import itertools

import pytest

import ttm_jax
import ttm_torch
from parity.weights import twin_of
from ttm_jax.machine.memory import READS, WRITES
from ttm_jax.machine.processing import PROCESSING_UNITS

SIZES = dict(memory_size=7, process_size=3, num_layers=2, mlp_dim=11, num_heads=2)
MACHINES = [
    *(
        ttm_jax.TokenTuringMachine(read=read, write=write, processing="mlp", **SIZES)
        for read, write in itertools.product(READS, WRITES)
    ),
    *(ttm_jax.TokenTuringMachine(processing=unit, **SIZES) for unit in PROCESSING_UNITS),
    ttm_jax.TokenTuringMachine(write="erase_add", compat="scenic", **SIZES),
    ttm_jax.SimpleTokenTuringMachine(**SIZES),
]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: "-".join(filter(None, map(str, (
    getattr(m, "read", "simple"), getattr(m, "write", None), m.processing, m.compat)))))  # fmt: skip
def test_a_machine_is_counted_as_jax_has_it_in_closed_form(machine):
    shape = (3, 2, 5, 16)
    expected = ttm_jax.measure_flops(machine, shape)
    assert ttm_torch.measure_flops(twin_of(machine, width=16, num_tokens=5), shape) == expected > 0


@pytest.mark.parametrize("config", ["default", "quick", "five_digits", "without carries"])
def test_the_multiplier_is_counted_as_jax_has_it_in_closed_form(config):
    name = config if config == "five_digits" else "quick"
    model = ttm_torch.ModelConfig() if config == "default" else ttm_jax.load_config(name).model
    model = dataclasses.replace(model, carry_head=False) if config == "without carries" else model
    expected = ttm_jax.measure_flops(ttm_jax.TTMModel(model))
    assert ttm_torch.measure_flops(ttm_torch.TTMModel(model)) == expected > 0
