"""What the commands share."""

import subprocess
import sys
from pathlib import Path

import pytest

from ttm_jax.cli import this_python


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A virtual environment's interpreter in the working folder."""
    executable = tmp_path / ".venv/bin/python"
    executable.parent.mkdir(parents=True)
    executable.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(executable))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return executable


def test_a_python_that_is_not_activated_has_its_path(environment):
    assert this_python() == str(Path(".venv/bin/python"))
    assert subprocess.run([this_python(), "-c", ""], check=True).returncode == 0


def test_elsewhere_the_path_is_whole(environment, monkeypatch):
    (environment.parent / "elsewhere").mkdir()
    monkeypatch.chdir(environment.parent / "elsewhere")
    assert this_python() == str(environment)


def test_an_activated_one_has_its_name(environment, monkeypatch):
    monkeypatch.setenv("PATH", str(environment.parent))
    assert this_python() == "python"
