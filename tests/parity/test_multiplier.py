"""The multiplier of both twins: logits, loss, gradients by every parameter and 20 optimiser steps; helper functions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import ttm_jax
import ttm_torch
from parity.compare import as_dict, gradients, random_params
from parity.scenic import relative_difference
from parity.weights import to_jax, to_torch
from ttm_jax import losses as jax_losses
from ttm_jax.config import ModelConfig, OptimizerConfig
from ttm_jax.state import loss_fn
from ttm_torch import losses as torch_losses
from ttm_torch.state import loss_fn as torch_loss_fn

FLOAT64_BOUND, FLOAT32_BOUND = 1e-10, 1e-5
SMALL = ModelConfig(
    width=8, memory_size=5, process_size=4, num_layers=1, mlp_dim=8, num_heads=2, dropout_rate=0.0, carry_head=True
)
DATA = ttm_jax.MultiplicationDataset(batch_size=4, start_stage=2)
STEPS = DATA.num_steps()


def batch(step, asarray):
    drawn = DATA.batch(seed=3, step=step)
    trimmed = {"inputs": drawn.inputs, "targets": drawn.targets[:, :STEPS], "carries": drawn.carries[:, :STEPS]}
    return {name: asarray(array) for name, array in trimmed.items()}


def twins(config, param_dtype, dtype=None):
    """Both models and the same random parameters; they compute in the parameters' type where `dtype` is None."""
    name = np.dtype(param_dtype).name
    config = dataclasses.replace(config, dtype=dtype or name, param_dtype=name)
    model, twin = ttm_jax.TTMModel(config), ttm_torch.TTMModel(config)
    inputs = jax.ShapeDtypeStruct((1, config.seq_len), jnp.int32)
    params = random_params(model, inputs, dtype=param_dtype, num_steps=1)
    twin.load_state_dict(to_torch(params))
    return model, params, twin


def worst(ours, theirs):
    return relative_difference(as_dict(ours), as_dict(theirs))


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_loss_gradients_and_20_steps_in_float64(name):
    optimizer_config = OptimizerConfig(name=name, warmup_steps=8, decay_steps=10, weight_decay=1e-2)
    with jax.enable_x64(True):
        model, params, twin = twins(SMALL, np.float64)
        optimizer = ttm_jax.make_optimizer(optimizer_config)

        @jax.jit
        def step(params, opt_state, batch):
            (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, model, batch, None)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss, logits, grads

        twin_loss, twin_logits = torch_loss_fn(twin, batch(0, torch.as_tensor))
        twin_loss.backward()
        # Optax computes rates and bias corrections in float32 from a count in int32, in float64 from one in int64.
        initial, opt_state = (
            params,
            jax.tree.map(lambda x: x.astype("int64") if x.ndim == 0 else x, optimizer.init(params)),
        )
        twin_optimizer = ttm_torch.make_optimizer(twin, optimizer_config)
        scheduler = ttm_torch.make_scheduler(twin_optimizer, optimizer_config)
        for n in range(20):
            params, opt_state, loss, logits, grads = step(params, opt_state, batch(n, np.asarray))
            if n == 0:
                found = {
                    "logits": worst({"": twin_logits.detach()}, {"": logits}),
                    "loss": abs(twin_loss.item() - float(loss)) / float(loss),
                    "gradients": worst(to_jax(gradients(twin), initial), grads),
                }
                assert max(found.values()) <= FLOAT64_BOUND, found
            step_loss = ttm_torch.train_step(twin, batch(n, torch.as_tensor), twin_optimizer, scheduler)
            assert step_loss.item() == pytest.approx(float(loss), rel=FLOAT64_BOUND)
        assert worst(params, initial) > 1e-3
        assert worst(to_jax(twin.state_dict(), params), params) <= FLOAT64_BOUND


def test_predictions_in_float32():
    config = dataclasses.replace(SMALL, width=128, num_layers=2)
    model, params, twin = twins(config, np.float32)
    inputs = DATA.batch(0, 0).inputs
    logits = jax.jit(model.apply)({"params": params}, inputs)
    with torch.no_grad():
        twin_logits = twin.eval()(torch.as_tensor(inputs))
    assert worst({"": twin_logits}, {"": logits}) <= FLOAT32_BOUND


@pytest.mark.parametrize("write", ["mlp", "erase_add"])
def test_bfloat16_is_as_far_from_float32_in_both(write):
    """By its rounding, half a percent at each of the operations in a row, and no further from each other."""
    config, logits = dataclasses.replace(SMALL, width=64, write=write), {}
    inputs = DATA.batch(0, 0).inputs
    for dtype in ("float32", "bfloat16"):
        model, params, twin = twins(config, np.float32, dtype)
        logits["jax", dtype] = jax.jit(model.apply)({"params": params}, inputs)
        with torch.no_grad():
            logits["torch", dtype] = twin.eval()(torch.as_tensor(inputs))
    for one, other in (
        [("jax", "bfloat16"), ("jax", "float32")],
        [("torch", "bfloat16"), ("torch", "float32")],
        [("torch", "bfloat16"), ("jax", "bfloat16")],
    ):
        digits = ({"": np.asarray(logits[name])[..., :12]} for name in (one, other))  # padding has logits of its own
        assert 1e-3 < relative_difference(*digits) < 4e-2


def test_evaluation_gives_the_same():
    with jax.enable_x64(True):
        model, params, twin = twins(SMALL, np.float64)
        theirs = ttm_jax.eval_step(model, params, batch(0, np.asarray))
        ours = ttm_torch.eval_step(twin, batch(0, torch.as_tensor))
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name].numpy(), theirs[name], rtol=1e-6, err_msg=name)


def test_position_indices_and_eos_masking():
    inputs = DATA.batch(0, 1).inputs
    ours = ttm_torch.create_position_indices(torch.as_tensor(inputs))
    np.testing.assert_array_equal(ours, ttm_jax.create_position_indices(inputs))
    logits = np.random.default_rng(0).normal(scale=8, size=(64, 12, 13)).astype(np.float32)
    has_eos = ttm_torch.detect_eos(torch.tensor(logits))
    np.testing.assert_array_equal(has_eos, ttm_jax.detect_eos(logits))
    assert 0 < has_eos.sum() < has_eos.numel()
    np.testing.assert_array_equal(
        ttm_torch.apply_eos_masking(torch.tensor(logits), has_eos),
        ttm_jax.apply_eos_masking(jnp.asarray(logits), jnp.asarray(has_eos.numpy())),
    )


@pytest.mark.parametrize(
    "name", ["compute_ce_loss", "compute_normalized_ce_loss", "compute_total_loss", "find_eos_positions"]
)
def test_losses(name):
    with jax.enable_x64(True):
        logits = np.random.default_rng(0).normal(scale=3, size=(4, 12, 13))
        targets = DATA.batch(0, 2).targets.copy()
        targets[0] = 1  # no EOS
        given = [targets] if name.startswith("find") else [logits, targets]
        ours = getattr(torch_losses, name)(*map(torch.tensor, given))
        theirs = getattr(jax_losses, name)(*map(jnp.asarray, given))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_the_rates_are_the_same():
    config = OptimizerConfig(warmup_steps=7, decay_steps=30)
    schedule = ttm_jax.learning_rate_schedule(config)
    ours = [ttm_torch.learning_rate(config, step) for step in range(45)]
    np.testing.assert_allclose(ours, [float(schedule(step)) for step in range(45)], rtol=1e-5)
