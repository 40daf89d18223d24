"""The workers of the speed comparison as its parent sees them."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

START_SECONDS = 120.0


class WorkerError(Exception):
    """A worker that died, failed or did not answer in time; the message is one line."""


class Worker:
    """A process that times one variant; see `parity.speed_worker`. A context manager: the end of it is its end."""

    def __init__(self, variant: str, device: str, folder: Path, command: list[str] | None = None):
        """Starts the process, which then sets itself up: wait for it with `hello`.

        Args:
            variant: what it times.
            device: "cpu" or "cuda".
            folder: for its errors and for what its compiler writes, so that nothing is found compiled.
            command: in place of `parity.speed_worker`.
        """
        self.variant = variant
        self._errors = tempfile.TemporaryFile(dir=folder)
        caches = tempfile.mkdtemp(dir=folder)
        environment = os.environ | {
            "JAX_PLATFORMS": device,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TORCHINDUCTOR_CACHE_DIR": caches,
        }
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "parity.speed_worker", variant, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's; its compilers end with it
        )
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process and whatever it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def hello(self) -> dict[str, Any]:
        """What the worker says when it is ready.

        Raises:
            WorkerError: if it does not get there.
        """
        return self._answer(START_SECONDS)

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer.

        Raises:
            WorkerError: if the worker dies, or has not answered after `timeout` seconds; it is of no use then.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            raise WorkerError(f"did not end in {timeout:.0f} s") from None
        if line is None:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        """How the process ended, with the last line that it wrote on stderr."""
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"died with {how}" + (f": {lines[-1].strip()[:300]}" if lines else "")
