"""What the machine of the twin says of wrong arguments and shapes; that it computes the right thing is parity's."""

import os
import subprocess
import sys

import pytest
import torch

import ttm_torch

N, D = 3, 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(read="erase_add"), "read must be one of 'mlp', 'query', 'pooling'; got 'erase_add'"),
        (dict(write="NONE"), "write must be one of"),
        (dict(processing="rnn"), "processing must be one of"),
        (dict(compat=True), "compat must be one of"),
        (dict(memory_size=0), "memory_size must be a positive int, got 0"),
        (dict(num_tokens=2.0), "num_tokens must be a positive int, got 2.0"),
        (dict(dropout_rate=1.0), r"dropout_rate must be in \[0, 1\), got 1.0"),
        (dict(dropout_rate="0.1"), r"dropout_rate must be in \[0, 1\), got '0.1'"),
        (dict(positions="no"), "positions must be one of False, True; got 'no'"),
        (dict(learned_memory=1), "learned_memory must be one of False, True; got 1"),
        (dict(num_heads=3), "num_heads must divide the width, got 3 heads for width 8"),
        (dict(compat="scenic", read="pooling"), "compat='scenic' has the read/write modes"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ttm_torch.TokenTuringMachine(**(dict(width=D, num_tokens=N) | options))


@pytest.mark.parametrize(
    ("tokens", "memory", "message"),
    [
        ((2, 3, 8), None, r"tokens must be \[B, T, N, D\], got shape"),
        ((2, 0, 3, 8), None, "tokens must have no empty axis"),
        ((2, 1, 4, 8), None, r"tokens must be \[B, T, 3, 8\], got shape \(2, 1, 4, 8\)"),
        ((2, 1, 3, 7), None, r"tokens must be \[B, T, 3, 8\], got shape \(2, 1, 3, 7\)"),
        ((2, 1, 3, 8), (1, 96, 8), r"memory must be \(2, 96, 8\), got \(1, 96, 8\)"),
    ],
)
def test_a_wrong_shape_is_named(tokens, memory, message):
    machine = ttm_torch.TokenTuringMachine(width=D, num_tokens=N, num_layers=1)
    with pytest.raises(ValueError, match=message):
        machine(torch.zeros(tokens), None if memory is None else torch.zeros(memory))


@pytest.mark.parametrize("arguments", [["-c", "import ttm_torch"], ["-m", "ttm_torch.train"]])
def test_without_pytorch_what_is_missing_is_said(arguments, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *package: None if name == 'torch' else find(name, *package)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    *before, last = ended.stderr.splitlines()
    assert "PyTorch is not installed; pip install 'token-turing-machine[torch]' installs it" in last
    assert not before or arguments[0] == "-c", "of a command one line"
