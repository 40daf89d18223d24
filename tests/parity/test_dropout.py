"""Dropout is random, so the twins cannot be compared by numbers: they drop units of the same tensors."""

import jax
import pytest
import torch
from torch import nn

import ttm_jax
import ttm_torch

B, M, R, N, D, H = 2, 5, 3, 4, 8, 2
SIZES = dict(memory_size=M, process_size=R, num_layers=2, mlp_dim=16, num_heads=H, dropout_rate=0.5)


def dropped_in_jax(options, equations):
    """The shapes of the random masks of a training step."""
    step = ttm_jax.TokenTuringMachineStep(**SIZES, **options)
    memory, tokens = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((B, M, D), (B, N, D)))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(step.init, keys, memory, tokens)

    def train(variables, memory, tokens):
        return step.apply(variables, memory, tokens, True, rngs={"dropout": keys["dropout"]})

    jaxpr = jax.make_jaxpr(train)(variables, memory, tokens).jaxpr
    return sorted(
        e.params["shape"] for e in equations(jaxpr) if e.primitive.name == "random_bits" and e.params["shape"]
    )


def dropped_in_torch(options):
    """The shapes of what goes through dropout in a training step."""
    step = ttm_torch.TokenTuringMachineStep(**SIZES, **options, width=D, num_tokens=N).train()
    shapes = []
    for module in step.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    step(torch.randn(B, M, D), torch.randn(B, N, D))
    return sorted(shapes)


@pytest.mark.parametrize(
    "options",
    [
        dict(read="mlp", write="mlp", processing="transformer"),
        dict(read="query", write="erase_add", processing="mixer"),
        dict(read="pooling", write="query", processing="mlp"),
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_the_same_tensors_are_dropped(options, equations):
    found = dropped_in_torch(options)
    assert found == dropped_in_jax(options, equations)
    assert found


def test_two_training_passes_differ_and_two_evaluations_do_not():
    machine = ttm_torch.TokenTuringMachine(**SIZES, width=D, num_tokens=N)
    tokens = torch.randn(B, 2, N, D)
    for training in (True, False):
        machine.train(training)
        first, second = machine(tokens)[0], machine(tokens)[0]
        assert torch.equal(first, second) != training
