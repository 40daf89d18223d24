"""The schedule of the checklist, clipping, and the arithmetic of torch.optim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ttm_jax.training.config import OptimizerConfig
from ttm_jax.training.optimizer import clip_by_global_norm, learning_rate_schedule, make_optimizer

DEFAULT = OptimizerConfig()


@pytest.fixture(scope="module")
def rates():
    return np.asarray(jax.vmap(learning_rate_schedule(DEFAULT))(jnp.arange(1301)))


def test_the_rate_rises_linearly_for_100_steps(rates):
    rises = np.diff(rates[:101])
    assert 0 < rates[0] < 1e-4
    np.testing.assert_allclose(rises, rises.mean(), rtol=1e-3)
    assert rates[100] == pytest.approx(0.002)
    assert rates.argmax() == 100


def test_the_rate_follows_a_cosine_to_a_tenth_of_the_base_rate(rates):
    steps = np.arange(1001)
    cosine = 0.0001 + (0.002 - 0.0001) * (1 + np.cos(np.pi * steps / 1000)) / 2
    np.testing.assert_allclose(rates[100:1101], cosine, rtol=1e-4)
    assert rates[1100] == pytest.approx(0.0001)
    np.testing.assert_allclose(rates[1100:], 0.0001, rtol=1e-5)


def test_the_schedule_follows_the_config():
    config = OptimizerConfig(learning_rate=0.1, peak_factor=3.0, warmup_steps=2, decay_steps=4, alpha=0.5)
    rates = [float(learning_rate_schedule(config)(step)) for step in (0, 1, 2, 4, 6, 9)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.175, 0.05, 0.05])


def clip(max_norm, gradients):
    return clip_by_global_norm(max_norm).update(gradients, optax.EmptyState())[0]


@pytest.mark.parametrize("scale", [1.5, 10.0, 1e6])
def test_large_gradients_are_scaled_to_the_norm(scale):
    gradients = {"a": scale * jnp.array([[3.0, 0.0]]), "b": scale * jnp.array([4.0])}
    clipped = clip(1.0, gradients)
    assert 0.999 < optax.tree.norm(clipped) <= 1.0
    np.testing.assert_allclose(clipped["a"][0, 0] / clipped["b"][0], 0.75, rtol=1e-6)


def test_small_gradients_are_left_as_they_are():
    gradients = {"a": jnp.array([0.3, -0.4]), "b": jnp.zeros(2)}
    clipped = clip(1.0, gradients)
    assert all(np.array_equal(clipped[key], gradients[key]) for key in gradients)


def test_gradients_keep_their_types():
    clipped = clip(1.0, {"a": jnp.full(3, 7.0, jnp.bfloat16), "b": jnp.full(3, 7.0)})
    assert (clipped["a"].dtype, clipped["b"].dtype) == (jnp.bfloat16, jnp.float32)


def torch_adam(config, params, gradients):
    """torch.optim.Adam or AdamW in NumPy, with the clipping and the schedule in front; params after each step."""
    p, m, v = params.astype(np.float64), 0.0, 0.0
    schedule = learning_rate_schedule(config)
    for step, gradient in enumerate(gradients, start=1):
        rate = float(schedule(step - 1))
        g = gradient.astype(np.float64)
        if config.max_grad_norm is not None:
            g = g * min(1.0, config.max_grad_norm / (np.linalg.norm(g) + 1e-6))
        if config.name == "adam":
            g = g + config.weight_decay * p
        else:
            p = p - rate * config.weight_decay * p
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g * g
        denominator = np.sqrt(v) / np.sqrt(1 - config.b2**step) + config.eps
        p = p - rate / (1 - config.b1**step) * m / denominator
        yield p


@pytest.mark.parametrize("max_grad_norm", [1.0, None])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_steps_are_those_of_torch(name, max_grad_norm):
    config = OptimizerConfig(
        name=name, learning_rate=0.05, warmup_steps=3, weight_decay=0.1, max_grad_norm=max_grad_norm
    )
    generator = np.random.default_rng(0)
    start = generator.normal(size=6).astype(np.float32)
    gradients = generator.normal(size=(8, 6)).astype(np.float32) * 2
    optimizer = make_optimizer(config)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.asarray(start)
    state = optimizer.init(params)
    for gradient, expected in zip(gradients, torch_adam(config, start, gradients), strict=True):
        params, state = step(params, state, gradient)
        np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)


def test_the_two_decays_differ():
    """In Adam the decay passes through the moments, in AdamW it does not: without gradient only one is a step."""
    first_step = {}
    for name in ("adam", "adamw"):
        optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1))
        params = jnp.array([1.0, 100.0])
        first_step[name], _ = optimizer.update(jnp.zeros(2), optimizer.init(params), params)
    np.testing.assert_allclose(first_step["adam"][0], first_step["adam"][1], rtol=1e-5)
    np.testing.assert_allclose(100 * first_step["adamw"][0], first_step["adamw"][1], rtol=1e-5)


def test_the_defaults_are_the_checklists():
    wanted = dict(name="adam", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=1e-4, max_grad_norm=1.0)
    assert {key: value for key, value in dataclasses.asdict(DEFAULT).items() if key in wanted} == wanted


def test_muon_sees_each_kernel_of_the_machine_as_a_matrix_of_inputs_and_outputs():
    kernels = {
        ("machine", "attention", "query", "kernel"): (6, 2, 3),
        ("machine", "attention", "out", "kernel"): (2, 3, 6),
        ("machine", "mlp", "hidden", "kernel"): (6, 4),
        ("machine", "mlp", "out", "kernel"): (4, 6),
    }
    config = OptimizerConfig(name="muon", warmup_steps=1, max_grad_norm=None, weight_decay=0.0, muon_rms=0.3)
    generator = np.random.default_rng(0)
    for path, shape in kernels.items():
        params = grads = jnp.asarray(generator.standard_normal(shape), jnp.float32)
        for name in reversed(path):
            params, grads = {name: params}, {name: grads}
        optimizer = make_optimizer(config)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        inputs = shape[0] if path[-2] != "out" or len(shape) == 2 else shape[0] * shape[1]
        update = np.asarray(jax.tree.leaves(updates)[0]).reshape(inputs, -1)
        gradient = np.asarray(jax.tree.leaves(grads)[0]).reshape(inputs, -1)
        scale = float(learning_rate_schedule(config)(0)) * 0.3 * np.sqrt(max(update.shape))
        np.testing.assert_allclose(update, -scale * newton_schulz(gradient), atol=2e-4 * scale)


def newton_schulz(matrix):
    """Five steps of the quintic iteration that pulls all singular values towards 1."""
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrix.astype(np.float64) / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def test_muon_leaves_what_is_no_kernel_of_the_machine_to_adam():
    params = {
        "head": {"kernel": jnp.ones((3, 2))},
        "machine": {"bias": jnp.ones(3), "initial_memory": jnp.ones((1, 2, 3))},
    }
    grads = jax.tree.map(lambda x: jnp.arange(1.0, x.size + 1).reshape(x.shape), params)
    optimizer = make_optimizer(OptimizerConfig(name="muon", weight_decay=0.0, max_grad_norm=None))
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for update in jax.tree.leaves(updates):  # Adam's first step has one size whatever the gradient's
        np.testing.assert_allclose(update, np.full(update.shape, update.ravel()[0]), rtol=1e-4)
        assert update.ravel()[0] < 0
