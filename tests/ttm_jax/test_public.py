"""The names that `import ttm_jax` gives."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttm_jax

NAMES = sorted(
    name for name, value in vars(ttm_jax).items() if not name.startswith("_") and not inspect.ismodule(value)
)


@pytest.mark.parametrize(
    "name",
    "TokenTuringMachine TTMModel MultiplicationDataset load is_held_out train_step eval_step Config "
    "load_config token_summarize read_operation write_operation TransformerStack compute_total_loss "
    "VOCAB_SIZE number_to_tokens tokens_to_string".split(),
)
def test_what_users_are_promised(name):
    assert name in NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if callable(getattr(ttm_jax, name))])
def test_every_name_says_what_it_is(name):
    value = getattr(ttm_jax, name)
    doc = inspect.getdoc(value)
    assert doc
    assert not doc.startswith(f"{name}("), "the docstring that dataclasses makes up"


def test_importing_starts_no_backend():
    """The number of devices can still be chosen afterwards."""
    code = "import ttm_jax, jax; jax.config.update('jax_num_cpu_devices', 2); assert jax.device_count() == 2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    folder = Path(ttm_jax.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
