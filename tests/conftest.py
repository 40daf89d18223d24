"""Strict settings for every test, a tiny configuration, and runs of it.

The settings must stand before the first import of the packages under test.
"""

import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)
torch.set_num_threads(1)  # small arrays: more threads wait for each other

# Shape and dtype contracts of the public pure functions: checked here, free for users. Without beartype, which a
# machine with a GPU may lack, the test of the contracts fails, and others go on.
if importlib.util.find_spec("beartype"):
    install_import_hook(
        ["ttm_jax.machine.summarize", "ttm_jax.machine.memory", "ttm_jax.machine.processing"], "beartype.beartype"
    )

import ttm_jax  # noqa: E402
from ttm_jax.multiplication.config import Config  # noqa: E402
from ttm_jax.multiplication.metrics import create_target_mask  # noqa: E402
from ttm_jax.multiplication.problems import MultiplicationDataset, operand_lengths  # noqa: E402
from ttm_jax.multiplication.steps import training_arrays  # noqa: E402
from ttm_jax.tasks import config_from_dict, make_task  # noqa: E402
from ttm_jax.training.command import SIGNALS  # noqa: E402
from ttm_jax.training.config import config_to_toml, override  # noqa: E402
from ttm_jax.training.loop import Ended, Evaluated, Event, FellBack, Said, Stepped, Trained  # noqa: E402
from ttm_jax.training.task import Example  # noqa: E402

# The variable of the folder with all that was compiled in this run, by any worker of pytest-xdist, and by subprocesses:
# most of the time of the tests is XLA's, much of it for the same few training steps.
COMPILED = "TTM_COMPILED"

# Forty steps. The stage ends at step 20, in the middle of a mixture window; dropout and augmentation are on.
# The cheapest modes of the machine, because each new config compiles a training step of its own.
TINY = {
    "model": {
        "width": 16,
        "memory_size": 4,
        "process_size": 2,
        "read": "pooling",
        "write": "concat",
        "processing": "mlp",
        "num_layers": 1,
        "mlp_dim": 16,
        "num_heads": 2,
        "dropout_rate": 0.1,
        "carry_head": True,
    },
    "data": {"batch_size": 8, "stages": [[0, 9], [0, 99]], "max_digits": [2, 2]},
    "curriculum": {"last_stage": 1, "max_epochs_per_stage": 3, "mixture_every": 3},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5},
    "train": {
        "seed": 7,
        "max_epochs": 8,
        "steps_per_epoch": 5,
        "eval_every_epochs": 2,
        "eval_pairs": 16,
        "eval_batch_size": 16,
        "patience_epochs": "none",
    },
}


def pytest_configure(config: pytest.Config) -> None:
    """All tests run on the CPU, where results are exact to the bit, but for `-m gpu`.

    The programs of the tests chosen by default are not optimised, nor are those of the commands that they start: most
    of the time would be XLA's. Slow tests and `python -m parity` run them as users do.
    """
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    if config.option.markexpr in config.getini("addopts"):
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    if not hasattr(config, "workerinput"):
        os.environ[COMPILED] = tempfile.mkdtemp()
    jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)  # what is less is compiled sooner than found
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure(config: pytest.Config) -> None:
    """What was compiled is of this run alone."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(COMPILED))


@pytest.fixture
def nans_are_errors() -> Iterator[None]:
    """Any NaN that a jitted computation gives raises FloatingPointError."""
    with jax.debug_nans(True):
        yield


@pytest.fixture(scope="session")
def exact_config(tiny_config) -> Config:
    """Without dropout, which differs by micro-batch and device, and in float64: rounding is far below any mistake."""
    return override(
        tiny_config, {"model.dropout_rate": "0.0", "model.dtype": "float64", "model.param_dtype": "float64"}
    )


@pytest.fixture(scope="session")
def batch() -> dict[str, np.ndarray]:
    """Its halves and quarters have different numbers of target tokens: a mean of their means would be another loss."""
    batch = MultiplicationDataset(8).batch(0, 0)
    targets = batch.targets[:, :3].copy()
    targets[:2] = [[5, 11, 12]] * 2
    for parts in (2, 4):
        assert len({create_target_mask(part).sum() for part in np.split(targets, parts)}) > 1
    return {"inputs": batch.inputs, "targets": targets, "carries": batch.carries[:, :3]}


@pytest.fixture(params=["digit", "product"])
def task(request, exact_config, batch):
    """`exact_config` and `batch`, and another schedule, of problems with different numbers of steps."""
    if request.param == "digit":
        return exact_config, batch
    config = override(exact_config, {"model.schedule": "product", "data.augment": "[]"})
    drawn = MultiplicationDataset(8, start_stage=2).batch(0, 0)
    assert len(np.unique(operand_lengths(drawn.inputs), axis=1).T) > 1
    return config, training_arrays(drawn, config.model, 5)


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Any]:
    """Parameters of a module with no scale one and no bias zero, without compiling its initialisation.

    `random_params(module, *inputs)`; kernels keep the variance of what they multiply.
    """

    def draw(module: Any, *inputs: Any) -> Any:
        generator = np.random.default_rng(0)

        def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
            numbers = generator.normal(size=shape.shape)
            scale = shape.shape[0] ** -0.5 if path[-1].key == "kernel" else 0.2
            return jnp.asarray((path[-1].key == "scale") + scale * numbers, shape.dtype)

        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree_util.tree_map_with_path(leaf, shapes.get("params", {}))

    return draw


@pytest.fixture(scope="session")
def equations() -> Callable[..., Iterator[Any]]:
    """`equations(jaxpr)` gives all equations, those of inner jaxprs too."""

    def walk(jaxpr: Any) -> Iterator[Any]:
        for equation in jaxpr.eqns:
            yield equation
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from walk(inner)

    return walk


@pytest.fixture(scope="session")
def normal() -> Callable[..., jax.Array]:
    """Standard normal float32 numbers: `normal(seed, *shape)`."""

    def draw(seed: int, *shape: int) -> jax.Array:
        return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)

    return draw


class RecordingDisplay:
    """Keeps the events of a training."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []
        self.records: list[dict[str, Any]] = []
        self.evaluations: list[tuple[dict[str, Any], list[Example]]] = []

    def __enter__(self) -> "RecordingDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, event: Event) -> None:
        match event:
            case Said(text) | FellBack(_, text):
                self.messages.append(text)
            case Stepped(step, _):
                self.steps.append(step)
            case Trained(record):
                self.records.append(record)
            case Evaluated(record, examples):
                self.evaluations.append((record, examples))


class TinyRun(NamedTuple):
    """A finished run of the tiny config."""

    path: Path
    config: Config
    display: RecordingDisplay


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    return config_from_dict(TINY)


@pytest.fixture
def config_file(tiny_config, tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(config_to_toml(tiny_config))
    return path


@pytest.fixture
def display() -> RecordingDisplay:
    return RecordingDisplay()


@pytest.fixture(scope="session")
def run_display() -> type[RecordingDisplay]:
    """For those who need one that lasts longer than a test."""
    return RecordingDisplay


@pytest.fixture(scope="session")
def make_train() -> Callable[..., Callable[..., str]]:
    """Of a `start`: `train(config, workdir, resume=False, stop_at=None, display=None)` says how the run ended."""

    def make(start: Callable[..., Iterator[Event]]) -> Callable[..., str]:
        def train(
            config: Config,
            workdir: Path,
            resume: bool = False,
            stop_at: int | None = None,
            display: RecordingDisplay | None = None,
        ) -> str:
            shown = display or RecordingDisplay()
            before = len(shown.steps)

            def stop() -> bool:
                return stop_at is not None and shown.steps[before:][-1:] >= [stop_at]

            for event in start(config, make_task(config), workdir, resume, stop):
                shown.show(event)
            assert isinstance(event, Ended)
            return event.how

        return train

    return make


@pytest.fixture(scope="session")
def run_tiny(tiny_config, tmp_path_factory) -> Callable[[Callable[..., str]], TinyRun]:
    """A run of the tiny config that never stops, by a `train` as `make_train` gives it."""

    def run(train: Callable[..., str]) -> TinyRun:
        path, display = tmp_path_factory.mktemp("tiny"), RecordingDisplay()
        assert train(tiny_config, path, display=display) == "finished"
        return TinyRun(path, tiny_config, display)

    return run


@pytest.fixture(scope="session")
def without_seconds() -> Callable[[Any], Any]:
    """Nested values without what the clock says."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "seconds"}
        return value

    return strip


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of subprocesses: they find the packages, share their compilations and leave the cores to each other."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(ttm_jax.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ[COMPILED],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """A command under test installs its own; afterwards they are as before."""
    handlers = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, SIGNALS)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


# Called with audit events ("event text of its arguments;event ..."), a module and the arguments of its command, which
# is killed when the last of the events has come.
_KILLED = """
import importlib, os, signal, sys
events = sys.argv[1].split(";")
def hook(event, values):
    name, _, text = events[0].partition(" ")
    if event == name and text in str(values):
        if len(events) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        events.pop(0)
main = importlib.import_module(sys.argv[2]).main
sys.addaudithook(hook)
main(sys.argv[3:])
"""


@pytest.fixture
def kill(environment) -> Callable[..., None]:
    """`kill(module, events, *arguments)` runs the module's command until the last of the audit events comes."""

    def run(module: str, events: str, *arguments: Any) -> None:
        command = [sys.executable, "-c", _KILLED, events, module, *map(str, arguments)]
        killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert killed.returncode == -signal.SIGKILL, killed.stderr

    return run


@contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.fixture
def small_files() -> Callable[[int], Any]:
    """`with small_files(n)`: no file can be written beyond n bytes, as where the disk is full."""
    return partial(limited, resource.RLIMIT_FSIZE)


@pytest.fixture
def no_more_files() -> Callable[[], Any]:
    """`with no_more_files()`: none can be opened."""
    return partial(limited, resource.RLIMIT_NOFILE, 0)


@pytest.fixture
def unread(monkeypatch) -> Callable[..., Any]:
    """`with unread("stdout")`: no one reads it any more."""

    @contextmanager
    def closed(name: str) -> Iterator[None]:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w", buffering=1) as pipe, monkeypatch.context() as patch:
            patch.setattr(sys, name, pipe)
            yield
            pipe.flush()  # as the interpreter does at its end

    return closed


@pytest.fixture
def call_command(capsys) -> Callable[..., tuple[int, str, str]]:
    """`call_command(main, *arguments)` gives exit code, stdout and stderr."""

    def call(main: Callable[[list[str]], int], *arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call
