"""A small multiplier with random parameters, without training, and the page of it as the command serves it."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ttm_jax.multiplication.multiplier import Multiplier
from ttm_jax.training.checkpoint import save_params
from ttm_jax.training.config import config_to_dict


@pytest.fixture(scope="session")
def multiplier(make_multiplier) -> Multiplier:
    """The modes of the shipped model."""
    return make_multiplier(read="mlp", write="mlp", memory_size=6, carry_head=True)


@pytest.fixture(scope="session")
def checkpoint(make_multiplier, tmp_path_factory) -> Path:
    """A network of the cheapest modes, which compiles fastest."""
    multiplier = make_multiplier()
    path = tmp_path_factory.mktemp("demo") / "checkpoint"
    save_params(path, multiplier.variables["params"], {"config": config_to_dict(multiplier.config)})
    return path


@pytest.fixture(scope="session")
def serving(environment, checkpoint) -> Callable[..., Any]:
    """`with serving("12*34") as (process, address)`: the process of the command, once it has said its address."""
    pytest.importorskip("starlette", reason="the extra demo is not installed")
    pytest.importorskip("uvicorn", reason="the extra demo is not installed")

    @contextlib.contextmanager
    def serve(*arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
        command = [sys.executable, "-m", "ttm_jax.demo", "--page", *arguments, "--checkpoint", str(checkpoint)]
        with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
            try:
                line = process.stdout.readline()
                assert line.startswith("http://127.0.0.1:"), process.stderr.read()
                yield process, line.split()[0]
            finally:
                process.kill()

    return serve


@pytest.fixture(scope="session")
def address(serving) -> Iterator[str]:
    """Of a page that is served for as long as there are tests."""
    with serving() as (_, address):
        yield address
