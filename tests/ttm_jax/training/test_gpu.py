"""The same results on CUDA as on the CPU. Run with `pytest -m gpu` where there is a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttm_jax import TokenTuringMachine, create_state, train_step
from ttm_jax.multiplication.problems import MultiplicationDataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA device"),
]


@pytest.fixture
def devices():
    return jax.devices("cpu")[0], jax.devices()[0]


@pytest.mark.parametrize("write", ["mlp", "query", "erase_add"])
def test_the_machine_and_its_gradient(devices, write):
    machine = TokenTuringMachine(memory_size=16, process_size=8, write=write, num_layers=2, remat=True)
    tokens_BxTxNxD = np.random.default_rng(0).standard_normal((4, 6, 12, 64), np.float32)
    variables = jax.jit(machine.init)(jax.random.key(0), tokens_BxTxNxD)

    def loss(variables, tokens):
        outputs, memory = machine.apply(variables, tokens)
        return jnp.mean(outputs**2) + jnp.mean(memory**2)

    with jax.default_matmul_precision("highest"):
        values = [
            jax.device_get(jax.jit(jax.value_and_grad(loss))(*jax.device_put((variables, tokens_BxTxNxD), device)))
            for device in devices
        ]
    for on_cpu, on_gpu in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-4, atol=1e-5 * max(1e-3, np.abs(on_cpu).max()))


def test_the_first_training_steps(devices, tiny_config):
    dataset = MultiplicationDataset(tiny_config.data.batch_size)
    losses = []
    for device in devices:
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            state = create_state(tiny_config)
            for step in range(3):
                batch = dataset.batch(0, step)
                arrays = {"inputs": batch.inputs, "targets": batch.targets, "carries": batch.carries}
                state, metrics = train_step(state, arrays)
            losses.append(float(metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
