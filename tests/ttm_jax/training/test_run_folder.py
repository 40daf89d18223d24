"""What a result says of its origin."""

import json
import os
import subprocess
import sys

import pytest

import ttm_jax
from ttm_jax.training.run_folder import commit_of, describe_origin

TELL = "import json; from ttm_jax.training.run_folder import provenance; print(json.dumps(provenance()))"


@pytest.mark.parametrize(
    ("file", "arguments", "command"),
    [
        ("tool/__main__.py", ["-m", "tool", "a b"], "python -m tool 'a b'"),
        ("tool/part/__main__.py", ["-m", "tool.part"], "python -m tool.part"),
        ("tool/part.py", ["-m", "tool.part", "--x", "1"], "python -m tool.part --x 1"),
        ("script.py", ["script.py", "x"], "script.py x"),
    ],
)
def test_the_command_is_as_it_was_typed(tmp_path, file, arguments, command):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TELL)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["command"] == command


class TestCommit:
    @pytest.fixture
    def repository(self, tmp_path):
        """A git repository with one commit of a project of the given name; with its hash."""

        def make(name):
            def git(*arguments):
                identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
                done = subprocess.run(
                    ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
                )
                return done.stdout.strip()

            (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
            git("init", "-q")
            git("add", ".")
            git("commit", "-qm", "first")
            return git("rev-parse", "HEAD")

        return make

    def test_of_this_project(self, repository, tmp_path):
        commit = repository("token-turing-machine")
        assert commit_of(tmp_path) == commit
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "token-turing-machine"\nversion = "1"\n')
        assert commit_of(tmp_path) == f"{commit}+changes"

    def test_a_repository_of_the_users_is_not_named(self, repository, tmp_path):
        """That the package was copied into, that an environment lies in, and that a copy of the project lies in."""
        repository("their-project")
        packages = tmp_path / ".venv/lib/site-packages"
        packages.mkdir(parents=True)
        assert commit_of(tmp_path) is None
        assert commit_of(packages) is None
        (packages / "pyproject.toml").write_text('[project]\nname = "token-turing-machine"\n')
        assert commit_of(packages) is None

    def test_the_version_is_told(self):
        assert describe_origin((), "cpu", "cpu")["token-turing-machine"] == ttm_jax.__version__
