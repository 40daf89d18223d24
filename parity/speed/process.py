"""The processes of the speed comparison, as their parent sees them."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 120.0


class WorkerError(Exception):
    """A worker that died; the message is one line."""


class WorkerTimeout(WorkerError):
    """A worker that has not answered in time; it is still at it."""


def worker_command(variant: str, device: str) -> list[str]:
    """What starts a worker."""
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
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for the parent alone; and the worker's compilers end with it
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def hello(self) -> dict[str, Any]:
        """What the worker says when it is ready.

        Raises:
            WorkerError: if it does not get there.
        """
        return self._answer(START_SECONDS)

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for the answer.

        Raises:
            WorkerTimeout: if it has not come after `timeout` seconds.
            WorkerError: if the worker dies.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: the answer says how
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer(timeout)

    def stop(self) -> None:
        """Ends the process and all that it has started; harmless when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise WorkerTimeout(f"did not end in {timeout:.0f} s") from None
        if not line:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        """How the process ended, and the last line that it wrote on stderr."""
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        lines = self._errors.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")
        return f"died with {how}: {last[:300]}"
