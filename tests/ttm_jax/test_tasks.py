"""Checkpoints by name from any folder; loading and evaluating ask the task that a checkpoint's own config names."""

import sys
from types import ModuleType

import jax
import pytest

import ttm_jax
from tests.toy import Config, LineObjective
from ttm_jax import tasks
from ttm_jax.evaluate import main as evaluate
from ttm_jax.multiplication.demo.command import main as demo
from ttm_jax.multiplication.diagnose import main as diagnose
from ttm_jax.tasks import config_of_checkpoint
from ttm_jax.training.checkpoint import save_params
from ttm_jax.training.checkpoint_files import JAX_FORMAT, LATEST, CheckpointError, find_checkpoint, read_meta
from ttm_jax.training.config import config_to_dict

SHIPPED = ("five_digits", "multiplication")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, which is the home folder too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_is_found_by_its_name(name):
    path = find_checkpoint(name)
    assert path.name == name
    assert config_of_checkpoint(path, read_meta(path, JAX_FORMAT)).task == "multiplication"


@pytest.mark.parametrize(("command", "before"), [(evaluate, []), (diagnose, []), (demo, ["1*2", "--checkpoint"])])
def test_a_wrong_name_gets_one_line_with_those_there_are(command, before, call_command):
    code, out, err = call_command(command, *before, "six_digits")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for name in ("six_digits", *SHIPPED):
        assert name in err


@pytest.fixture
def run(tmp_path):
    """A run folder with what is looked for."""
    for item in ("best/40", "checkpoints/40", "checkpoints/50"):
        for part in ("params", "meta"):
            (tmp_path / "run" / item / part).mkdir(parents=True)
    return tmp_path / "run"


def test_what_exists_counts_before_what_is_shipped(run):
    folder = run.rename(run.with_name("five_digits"))
    assert find_checkpoint("five_digits") == folder / "best/40"


@pytest.mark.parametrize(
    ("name", "found"),
    [("~/run", "best/40"), ("run/best", "best/40"), ("run/best/", "best/40"), ("~/run/checkpoints", "checkpoints/50")],
)
def test_a_run_folder_and_its_parts(name, found, run):
    assert find_checkpoint(name) == run / found


def test_a_home_that_is_nobodys_is_a_name_as_any():
    with pytest.raises(CheckpointError, match=r"~nobody-is-called-so/run: no such file or folder$"):
        find_checkpoint("~nobody-is-called-so/run")


def test_a_shipped_checkpoint_is_none_to_go_on_from():
    with pytest.raises(CheckpointError, match=r"five_digits: no such file or folder$"):
        find_checkpoint("five_digits", (LATEST,))


@pytest.fixture
def toy_task(monkeypatch, tmp_path):
    """A task that is registered as docs/tasks.md says, and a checkpoint of it."""
    modules = {name: ModuleType(f"ttm_jax.toy.{name}") for name in ("config", "line", "evaluate")}
    modules["config"].Config = Config
    modules["line"].load = lambda path: ("line", path)
    modules["evaluate"].main = lambda argv: ["evaluated", *argv]
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(tasks.TASKS, "toy", "line")
    save_params(tmp_path / "toy", LineObjective().init(jax.random.key(0)), {"config": config_to_dict(Config())})
    return tmp_path / "toy"


def test_another_task_loads_and_evaluates_its_own(toy_task, call_command):
    assert ttm_jax.load("toy") == ("line", toy_task)
    assert evaluate(["--pairs", "3", "toy", "--more"]) == ["evaluated", "--pairs", "3", "toy", "--more"]
    code, _, err = call_command(evaluate, "--pairs", "3", "five_digits", "--more")
    assert (code, err.count("--more")) == (2, 1)
