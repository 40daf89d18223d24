"""Export with a free batch, in every mode: `jax.export` with a symbolic batch, run at two other sizes."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from parity.fast_jit import fast_jit
from ttm_jax.machine.machine import SimpleTokenTuringMachine, TokenTuringMachine
from ttm_jax.machine.memory import READS, WRITES

T, N, D, M = 2, 3, 8, 5
SIZES = dict(memory_size=M, process_size=4, num_layers=1, mlp_dim=8, num_heads=2)
# Every read, write and processing unit at least once.
CASES = {
    "mlp-erase_add-mixer": TokenTuringMachine(write="erase_add", processing="mixer", **SIZES),
    "query-query-transformer": TokenTuringMachine(read="query", write="query", gate="fixed", **SIZES),
    "pooling-pooling-mlp": TokenTuringMachine(read="pooling", write="pooling", processing="mlp", **SIZES),
    "mlp-concat-mlp": TokenTuringMachine(write="concat", processing="mlp", **SIZES),
    "simple-mlp": SimpleTokenTuringMachine(processing="mlp", **SIZES),
}


def exported(machine, variables, *more):
    """`machine.apply(variables, tokens, *more)`, where `more` are shapes that begin with the batch."""
    (batch,) = export.symbolic_shape("batch")
    tokens, *more = (jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in (((T, N, D), jnp.float32), *more))

    def apply(variables, tokens, memory=None, valid=None):
        return machine.apply(variables, tokens, memory, valid_BxTxN=valid)

    return export.export(fast_jit(apply))(variables, tokens, *more)


@pytest.mark.parametrize("case", CASES)
def test_the_exported_program_runs_at_other_batch_sizes(case, normal, random_params):
    machine, x, memory = CASES[case], normal(0, 5, T, N, D), normal(1, 5, M, D)
    variables = {"params": random_params(machine, x)}
    valid = np.random.default_rng(0).random((5, T, N)) > 0.3
    more = ((M, D), jnp.float32), ((T, N), jnp.bool)
    program = exported(machine, variables, *more)
    expected = fast_jit(lambda: machine.apply(variables, x, memory, valid_BxTxN=valid))()
    for size in (5, 1):
        found = program.call(variables, x[:size], memory[:size], valid[:size])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs[:size], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("read", "write"), list(product(READS, WRITES)))
def test_every_mode_has_a_free_batch(read, write):
    machine = TokenTuringMachine(read=read, write=write, **SIZES)
    variables = jax.eval_shape(machine.init, jax.random.key(0), jnp.ones((1, T, N, D)))
    outputs, memory = exported(machine, variables).out_avals
    assert export.is_symbolic_dim(outputs.shape[0])
    assert memory.shape == (outputs.shape[0], M, D)
