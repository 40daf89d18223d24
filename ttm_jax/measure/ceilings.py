"""What the device can do at best, measured in the same run as what is compared with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ttm_jax.measure.program import Program
from ttm_jax.measure.workload import normal

PRODUCT, COPY = "large product", "large copy"


@dataclass(frozen=True)
class CeilingSizes:
    """The product of two [n, n] matrices and the copy of so many bytes, both float32."""

    product: int
    copy_bytes: int


def ceiling_sizes(device: jax.Device) -> CeilingSizes:
    """Choose sizes so large that nothing but arithmetic, or memory, takes time."""
    return CeilingSizes(2048, 2**28) if device.platform == "cpu" else CeilingSizes(8192, 2**30)


def ceiling_functions(sizes: CeilingSizes) -> dict[str, Callable[[], Any]]:
    """Make the product and the copy, ready to be timed; the copy goes to memory that was written before."""
    matrix = normal(sizes.product, sizes.product)
    product = Program(jnp.matmul, matrix, matrix)
    source = jnp.ones((sizes.copy_bytes // 4,))
    copy = Program(lambda destination, source: (jnp.copy(source),), source, source, carries=True)
    return {PRODUCT: product.bind(matrix, matrix), COPY: copy.bind(jnp.zeros_like(source), source)}


def ceilings(sizes: CeilingSizes, timings: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return FLOP/s of the product and bytes/s of the copy (each byte read once and written once), with timings."""
    return {
        "flops_per_s": 2 * sizes.product**3 / timings[PRODUCT]["median_s"],
        "bytes_per_s": 2 * sizes.copy_bytes / timings[COPY]["median_s"],
        "product": {"size": sizes.product, **timings[PRODUCT]},
        "copy": {"bytes": sizes.copy_bytes, **timings[COPY]},
    }
