"""How the process keeps memory that the CPU backend has freed."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_UNLIMITED = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes malloc reuse freed memory, however large, in place of returning it to the system.

    XLA on the CPU allocates the temporary memory of a program anew at each call. By default glibc gets buffers above
    32 MB from the system and returns them each time, so that each step pays for tens of thousands of new pages. Call it
    before the first array is made; the process then stays as large as it ever was.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, since those of other threads cannot hold a large buffer.
    options = ((_M_MMAP_THRESHOLD, _UNLIMITED), (_M_TRIM_THRESHOLD, _UNLIMITED), (_M_ARENA_MAX, 1))
    done = [mallopt(option, value) == 1 for option, value in options]
    return all(done)
