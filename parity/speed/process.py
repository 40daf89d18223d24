"""The processes of the speed comparison, as their parent sees them."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class WorkerError(Exception):
    """A worker that died; the message is one line."""


class WorkerTimeout(WorkerError):
    """A worker that has not answered in time; it is still at it."""


def worker_command(variant: str, device: str) -> list[str]:
    """Return what starts a worker."""
    return [sys.executable, "-m", "parity.speed.worker", variant, device]


class Worker:
    """A process that times one variant (`parity.speed.worker`).

    Args:
        command: what starts it.
        device: "cpu" or "cuda".
        folder: holds what its compiler keeps, so that nothing is found already compiled; and what it writes on stderr.
    """

    def __init__(self, command: Sequence[str], device: str, folder: Path):
        own_folder = Path(tempfile.mkdtemp(dir=folder))
        self._errors = own_folder / "stderr"
        environment = os.environ | {
            "JAX_PLATFORMS": device,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(own_folder / "compiled"),
        }
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True,
                start_new_session=True,  # Ctrl-C is for the parent alone; and the worker's compilers end with it
            )  # fmt: skip
        self._commands: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its one-line answer; raise WorkerError where none comes in `timeout` seconds."""
        with contextlib.suppress(BrokenPipeError):  # it has died: the answer says how
            print(json.dumps({"do": do, **arguments}), file=self._commands, flush=True)
        if not select.select([self._answers], [], [], timeout)[0]:
            raise WorkerTimeout(f"did not end in {timeout:.0f} s")
        if line := self._answers.readline():
            return json.loads(line)
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        lines = ["nothing on stderr", *filter(str.strip, self._errors.read_text(errors="replace").split("\n"))]
        raise WorkerError(f"died with {how}: {lines[-1].strip()[:300]}")

    def stop(self) -> None:
        """End the process and all that it has started; harmless when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._commands, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
