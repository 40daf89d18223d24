"""Memory freed by one step serves the next."""

import os
import platform
import subprocess
import sys

import pytest

PAGES_OF_A_STEP = """
import resource, sys
from ttm_jax.hardware.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.outer(x, x)) @ x)  # the outer product: 151 MB
x = jnp.ones(6144)
def faults():
    for _ in range(40):
        step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()  # the first calls, and all that came before, grow the heap
print(faults() - before)
"""


RESIDENT = """
import re
from pathlib import Path
import numpy as np
from ttm_jax.hardware.allocator import keep_freed_memory, release_freed_memory
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
assert keep_freed_memory()
before = resident()
rows = [np.ones(2**17) for _ in range(100)]  # a megabyte each
last = np.ones(2**17)  # no memory can be returned from below it but by asking
del rows
kept = resident()
release_freed_memory()
print(kept - before, resident() - before)
"""
of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")


@of_glibc
def test_a_step_gets_the_pages_of_the_one_before():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def pages(how: str) -> int:
        command = [sys.executable, "-c", PAGES_OF_A_STEP, how]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert pages("keep") < pages("default") / 10


@of_glibc
@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is Linux's")
def test_what_is_kept_can_be_given_back():
    result = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    kept, left = map(int, result.stdout.split())
    assert kept > 90
    assert left < 20
