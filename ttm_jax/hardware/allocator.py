"""How the process keeps memory that the CPU backend has freed, and how it gives it back."""

import ctypes
import platform
import re
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_UNLIMITED = 2**31 - 1


def keep_freed_memory(jax: bool = True) -> bool:
    """Make malloc reuse freed memory instead of returning it to the system.

    Call this before the first array is made. On the CPU, XLA allocates a program's temporary memory anew at each call.
    By default glibc takes buffers above 32 MB from the system and returns them each time. Each step then pays for tens
    of thousands of new pages. The price of keeping them is that the process stays as large as it ever was.

    Args:
        jax: also make JAX run programs on the CPU in the thread that calls them, which waits for them. Outside the
            main thread, glibc reuses no more than 64 MB. Work of several devices still runs in other threads;
            training divides it into parts that take less.

    Returns:
        Whether it was done: False where the C library is not glibc, or refuses.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(option, _UNLIMITED) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    if jax and all(done):
        from jax import config

        config.update("jax_cpu_enable_async_dispatch", False)
    return all(done)


def release_freed_memory() -> None:
    """Return to the system the freed memory that malloc keeps; do nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(name: str) -> int | None:
    """Read the process's resident memory, now ("VmRSS") or at its peak ("VmHWM"); None outside Linux."""
    status = Path("/proc/self/status")
    line = re.search(rf"{name}:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    return None if line is None else 1024 * int(line[1])
