"""What a result says of its origin."""

import json
import os
import subprocess
import sys

import pytest

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
