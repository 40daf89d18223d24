"""The command with PyTorch on a CUDA device, JAX on the CPU: `pytest -m gpu`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("only", ["scenic/unit_TL_*", "layers/*", "gradients/*", "training/mlp-mlp-*", "multiplier/*"])
def test_the_twins_agree(only):
    done = subprocess.run(
        [sys.executable, "-m", "parity", "--device", "cuda", "--only", only],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " on cuda; ttm_jax: jax " in done.stdout
