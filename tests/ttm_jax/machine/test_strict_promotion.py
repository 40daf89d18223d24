"""The public parts where the user wants dtypes to be promoted strictly: what they compute is the same."""

import inspect
from functools import partial

import jax
import pytest
from flax import linen as nn

import ttm_jax
from ttm_jax.machine.layers import LayerNorm
from ttm_jax.text import config as text

SIZES = dict(memory_size=4, process_size=3, num_layers=1, mlp_dim=8, num_heads=2)
MODEL = ttm_jax.ModelConfig(width=16, dtype="bfloat16", carry_head=True, **SIZES)
TEXT = text.ModelConfig(width=16, segment=6, num_heads=2, mlp_dim=8, memory_size=4, process_size=3, dtype="bfloat16")
# Memory in float32, and tokens in bfloat16.
M, N = (jax.ShapeDtypeStruct((2, *shape), dtype) for shape, dtype in (((4, 16), "float32"), ((6, 16), "bfloat16")))
BY_STEP = jax.ShapeDtypeStruct((2, 3, 6, 16), "bfloat16")
SEGMENTS = jax.ShapeDtypeStruct((2, 3, 6), "int32")
PROBLEMS = jax.ShapeDtypeStruct((2, 12), "int32")
W, D = (jax.ShapeDtypeStruct((2, 5, size), "float32") for size in (4, 16))
write, write_module = partial(ttm_jax.write_operation, num_heads=2), partial(ttm_jax.make_write, num_heads=2)
MODULES = {
    "FeedForward": (ttm_jax.FeedForward(8), N),
    "MultiHeadAttention": (ttm_jax.MultiHeadAttention(2), M, N),
    "Positions": (ttm_jax.Positions(), N),
    "LayerNorm": (LayerNorm(), N),
    "TransformerBlock": (ttm_jax.TransformerBlock(2, 8), N),
    "TransformerStack": (ttm_jax.TransformerStack(1, 2, 8), N),
    "MixerStack": (ttm_jax.MixerStack(1, 8), N),
    "MLPStack": (ttm_jax.MLPStack(1, 8), N),
    "MLPSummarizer": (ttm_jax.MLPSummarizer(2), N),
    "QuerySummarizer": (ttm_jax.QuerySummarizer(2, 2), N),
    "PoolingSummarizer": (ttm_jax.PoolingSummarizer(2), N),
    "Read": (ttm_jax.Read(3), M, N),
    **{f"make_write {kind}": (write_module(kind), M, N, N) for kind in ("mlp", "query", "erase_add", "concat")},
    "SimpleTokenTuringMachine": (ttm_jax.SimpleTokenTuringMachine(**SIZES), BY_STEP),
    "SimpleTokenTuringMachineStep": (ttm_jax.SimpleTokenTuringMachineStep(**SIZES), M, N),
    "TokenTuringMachine": (ttm_jax.TokenTuringMachine(**SIZES), BY_STEP),
    "TokenTuringMachineStep": (ttm_jax.TokenTuringMachineStep(**SIZES), M, N),
    "OutputHead": (ttm_jax.OutputHead(MODEL), N),
    "TTMModel": (ttm_jax.TTMModel(MODEL), PROBLEMS),
    "DirectTransformer": (ttm_jax.DirectTransformer(MODEL), PROBLEMS),
    "TTMLanguageModel": (ttm_jax.TTMLanguageModel(TEXT, 11), SEGMENTS),
    "TransformerLanguageModel": (ttm_jax.TransformerLanguageModel(TEXT, 11), SEGMENTS),
}
# Of a module's parameters, or without any.
FUNCTIONS = {
    "compute_importance_weights": (partial(ttm_jax.compute_importance_weights, k=2), "MLPSummarizer"),
    "token_summarize": (partial(ttm_jax.token_summarize, k=2), "MLPSummarizer"),
    "query_summarize": (partial(ttm_jax.query_summarize, k=2, num_heads=2), "QuerySummarizer"),
    "read_operation": (partial(ttm_jax.read_operation, r=3), "Read"),
    "write_operation": (write, "make_write mlp"),
    "erase_add_write": (ttm_jax.erase_add_write, "make_write erase_add"),
    "process": (partial(ttm_jax.process, kind="mlp", num_layers=1, mlp_dim=8), "MLPStack"),
    "concat_memory_input": (ttm_jax.concat_memory_input, M, N),
    "concat_for_write": (ttm_jax.concat_for_write, M, N, N),
    "concat_write": (ttm_jax.concat_write, M, N),
    "erase_and_add": (ttm_jax.erase_and_add, M, W, D, jax.ShapeDtypeStruct((2, 5, 16), "bfloat16")),
    "normalize_weights": (ttm_jax.normalize_weights, N),
    "weighted_sum": (ttm_jax.weighted_sum, N, jax.ShapeDtypeStruct((2, 3, 6), "float32")),
    "pooling_summarize": (partial(ttm_jax.pooling_summarize, k=4), N),
}


def test_all_public_modules_are_here():
    public = {
        name
        for name in ttm_jax.__all__
        if inspect.isclass(value := getattr(ttm_jax, name)) and issubclass(value, nn.Module)
    }
    assert public <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    module, *inputs = MODULES[name]

    def call():
        return jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)

    expected = call()
    with jax.numpy_dtype_promotion("strict"):
        assert call() == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, *inputs = FUNCTIONS[name]
    if isinstance(inputs[0], str):
        module, *inputs = MODULES[inputs[0]]
        inputs = [jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"], *inputs]
    expected = jax.eval_shape(function, *inputs)
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(function, *inputs) == expected
