"""Memory freed by one step serves the next."""

import os
import platform
import subprocess
import sys

import pytest

PAGES_OF_A_STEP = """
import resource, sys
from ttm_jax.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.outer(x, x)) @ x)  # the outer product: 36 MB
x = jnp.ones(3072)
for _ in range(40):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_step_gets_the_pages_of_the_one_before():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def pages(how: str) -> int:
        command = [sys.executable, "-c", PAGES_OF_A_STEP, how]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert pages("keep") < pages("default") / 2  # not 1 / 40: the first calls still grow the heap
