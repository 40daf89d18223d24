"""How the process keeps memory that the CPU backend has freed, and how it gives it back."""

import ctypes
import platform
import re
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_UNLIMITED = 2**31 - 1


def keep_freed_memory(jax: bool = True) -> bool:
    """Makes malloc reuse freed memory in place of returning it to the system.

    To be called before the first array is made. XLA on the CPU allocates the temporary memory of a program anew at each
    call. By default glibc gets buffers above 32 MB from the system and returns them each time, so that each step pays
    for tens of thousands of new pages. The process then stays as large as it ever was.

    Args:
        jax: also make JAX run programs on the CPU in the thread that calls them, which waits for them: in other threads
            than the main one glibc reuses no more than 64 MB. What several devices compute runs in other threads all
            the same; training divides it into parts that take less.

    Returns:
        Whether it was done: False where the C library is not glibc, or refuses it.
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
    """Returns to the system what malloc keeps of freed memory; does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(name: str) -> int | None:
    """The process's resident memory, now ("VmRSS") or at most ("VmHWM"); None where the system is not Linux."""
    status = Path("/proc/self/status")
    line = re.search(rf"{name}:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    return None if line is None else 1024 * int(line[1])
