"""What the machine of the twin says of wrong arguments and shapes; that it computes the right thing is parity's."""

import os
import subprocess
import sys

import numpy as np
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
        (dict(gate="open"), "gate must be one of None, 'fixed'; got 'open'"),
        (dict(gate="fixed", compat="scenic"), "gate must be one of None; got 'fixed'"),
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
        ((2, 1, 4, 8), None, "tokens must have .*'N': 3.*, got .*'N': 4"),
        ((2, 1, 3, 7), None, "tokens must have .*'D': 8.*, got .*'D': 7"),
        ((2, 1, 3, 8), (1, 96, 8), r"memory must be .*\[2, 96, 8\], got float32\[1, 96, 8\]"),
    ],
)
def test_a_wrong_shape_is_named(tokens, memory, message):
    machine = ttm_torch.TokenTuringMachine(width=D, num_tokens=N, num_layers=1)
    with pytest.raises(ValueError, match=message):
        machine(torch.zeros(tokens), None if memory is None else torch.zeros(memory))


@pytest.mark.parametrize(
    ("options", "any_number"),
    [
        (dict(write="erase_add", positions=False), False),
        (dict(write="erase_add", compat="scenic", positions=False), True),
        (dict(read="pooling", write="query", positions=False), True),
        (dict(simple=True), True),
    ],
)
def test_another_number_of_tokens_where_no_parameter_depends_on_it(options, any_number):
    """As in JAX."""
    options = {"memory_size": 4, "num_layers": 1, "num_heads": 2} | options
    simple = options.pop("simple", False)
    make = ttm_torch.SimpleTokenTuringMachine if simple else ttm_torch.TokenTuringMachine
    machine = make(width=D, num_tokens=N, **options)
    if any_number:
        assert machine(torch.zeros(2, 1, N + 1, D))[1].shape == (2, 4, D)
    else:
        with pytest.raises(ValueError, match="tokens must have .*'N': 3.*, got .*'N': 4"):
            machine(torch.zeros(2, 1, N + 1, D))


TOKENS = torch.zeros(2, 1, N, D)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([[[[0.0]]]], {}, "tokens must be a tensor .*, got list"),
        (TOKENS, dict(memory=True), r"memory must be .*\[2, 96, 8\], got bool"),
        (TOKENS, dict(memory=torch.ones(2, 96, 8).bool()), r"memory must be .*, got bool\[2, 96, 8\]"),
        (TOKENS, dict(valid_BxT=torch.ones(2, 1)), r"valid_BxT must be .*bool\[2, 1\], got float32\[2, 1\]"),
        (TOKENS, dict(valid_BxTxN=torch.ones(2, 1).bool()), r"valid_BxTxN must be .*\[2, 1, 3\], got bool\[2, 1\]"),
        (TOKENS, dict(reset_BxT=[[True], [False]]), r"reset_BxT must be .*bool\[2, 1\], got list"),
    ],
)
def test_a_wrong_array_is_named(tokens, options, message):
    machine = ttm_torch.TokenTuringMachine(width=D, num_tokens=N, num_layers=1)
    with pytest.raises(ValueError, match=message):
        machine(tokens, **options)


def test_sizes_may_be_integers_of_numpy():
    sizes = dict(width=D, num_tokens=N, memory_size=4, process_size=2, num_layers=1, mlp_dim=4, num_heads=2)
    for make in (ttm_torch.TokenTuringMachine, ttm_torch.SimpleTokenTuringMachine):
        outputs, _ = make(**{name: np.int64(size) for name, size in sizes.items()})(TOKENS)
        assert outputs.shape == (2, 1, 2, D)


def test_a_new_gate_keeps_nine_tenths():
    machine = ttm_torch.TokenTuringMachine(width=D, num_tokens=N, num_layers=1, gate="fixed")
    torch.testing.assert_close(machine.step.gate.sigmoid(), torch.full((D,), 0.9))


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
