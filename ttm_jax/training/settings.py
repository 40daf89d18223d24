"""JAX's settings that a user may have made strict for code of their own, and that the trainer's may not fail for."""

from collections.abc import Generator
from contextlib import contextmanager

import jax


@contextmanager
def lenient(transfers: bool = True) -> Generator[None]:
    """Promote types by JAX's standard rules and, where `transfers`, move numbers to the device as they are needed.

    Steps of training go without `transfers`: there each would make the device wait.
    """
    with jax.numpy_dtype_promotion("standard"):
        if not transfers:
            yield
            return
        with jax.transfer_guard("allow"):
            yield
