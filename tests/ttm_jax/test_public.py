"""The names that `import ttm_jax` gives."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttm_jax

NAMES = [name for name in ttm_jax.__all__ if not inspect.ismodule(getattr(ttm_jax, name))]


def run_python(code):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    folder = Path(ttm_jax.__file__).parents[1]
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


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
    code = (
        "from ttm_jax import *; import jax; jax.config.update('jax_num_cpu_devices', 2); assert jax.device_count() == 2"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_each_name_is_that_of_the_module_that_the_stub_says():
    assert set(ttm_jax.__all__) <= set(dir(ttm_jax))
    for name in NAMES:
        module = getattr(getattr(ttm_jax, name), "__module__", None)
        assert module is None or getattr(sys.modules[module], name) is getattr(ttm_jax, name)


def test_what_is_not_there_is_said():
    with pytest.raises(AttributeError, match="TokenTuringMachin"):
        _ = ttm_jax.TokenTuringMachin
    with pytest.raises(ImportError, match="cannot import name 'loda' from 'ttm_jax'"):
        exec("from ttm_jax import loda")


@pytest.mark.parametrize(
    "module", ["ttm_jax", "ttm_jax.multiplication.grid", "ttm_jax.training.command", "ttm_torch.train"]
)
def test_what_needs_no_jax_does_not_import_it(module):
    result = run_python(f"import sys, {module}; print(*sorted({{'jax', 'flax', 'optax', 'orbax'}} & {{*sys.modules}}))")
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr
