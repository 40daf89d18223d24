"""How the process keeps memory that the CPU backend has freed, and how it gives it back."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_UNLIMITED = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes malloc reuse freed memory in place of returning it to the system.

    XLA on the CPU allocates the temporary memory of a program anew at each call. By default glibc gets buffers above
    32 MB from the system and returns them each time, so that each step pays for tens of thousands of new pages. Call it
    before the first array is made; the process then stays as large as it ever was. All threads share one arena: XLA runs
    programs on threads of its own, and other arenas than the main one hold at most 64 MB.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = {_M_MMAP_THRESHOLD: _UNLIMITED, _M_TRIM_THRESHOLD: _UNLIMITED, _M_ARENA_MAX: 1}
    done = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(done)


def release_freed_memory() -> None:
    """Returns to the system what malloc keeps of freed memory; does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
