"""What a language model costs, against its traced program and against figures computed by hand for the four configs."""

import jax
import jax.numpy as jnp
import pytest

from ttm_jax.tasks import load_config, make_objective
from ttm_jax.text.analyse import analyse, segment_macs
from ttm_jax.training.config import override

# Parameters in millions, operations of a token in training in millions: plain, and with a machine.
CONFIGS = {
    "wiki_gpu_optimized": ((27.1, 171.8), (27.5, 159.7)),
    "wiki_cache_optimized": ((13.2, 81.7), (13.5, 76.8)),
    "wiki_performance_tuned": ((11.3, 69.4), (11.5, 70.0)),
    "autoregressive_fast": ((6.5, 39.9), (6.6, 38.0)),
}
OPTIONS = [
    {"kind": "transformer"},
    {"kind": "transformer", "process_layers": 3},
    {},
    {"context": "memory", "write": "erase_add", "upper_layers": 2},
    {"context": "outputs", "read": "pooling", "process_layers": 2},
]


@pytest.mark.parametrize("kind", ["transformer", "ttm"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_four_configs(name, kind):
    found = analyse(override(load_config(f"text/{name}"), {"model.kind": kind}))
    parameters, training = CONFIGS[name][kind == "ttm"]
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert found.training_flops / 1e6 == pytest.approx(training, abs=0.05)
    assert found.weight_bytes == 4 * found.parameters
    assert (found.machine_bytes > 0) == (kind == "ttm")
    assert found.weight_bytes - found.machine_bytes < found.decoding_bytes < 1.06 * found.weight_bytes


@pytest.mark.parametrize("kind", ["transformer", "ttm"])
@pytest.mark.parametrize("name", CONFIGS)
def test_multiply_adds_of_the_four_configs(name, kind, products):
    config = override(load_config(f"text/{name}"), {"model.kind": kind})
    objective = make_objective(config)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    tokens_1x1xN = jax.ShapeDtypeStruct((1, 1, config.model.segment), jnp.int32)
    traced = products(jax.make_jaxpr(objective.model.apply)({"params": params}, tokens_1x1xN).jaxpr)
    assert sum(analyse(config).macs.values()) == traced


@pytest.mark.parametrize("options", OPTIONS)
def test_multiply_adds_are_the_products_of_the_program(options, make_tiny, products):
    model, variables = make_tiny("float32", **options)
    tokens_2xTxN = jnp.zeros((2, 3, model.config.segment), jnp.int32)
    traced = products(jax.make_jaxpr(model.apply)(variables, tokens_2xTxN).jaxpr)
    assert 2 * 3 * sum(segment_macs(model.config, model.vocab_size).values()) == traced
