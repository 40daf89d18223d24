"""`jax.jit` for programs that run a few times on small arrays, where compiling takes most of the time."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# Not every version has each.
_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def fast_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile as `jax.jit` does, with its options, but spend little time on optimising."""
    return jax.jit(function, compiler_options=_known_options(), **options)


@cache
def _known_options() -> dict[str, Any]:
    """Return those of _OPTIONS that the installed version has."""
    return {name: value for name, value in _OPTIONS.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
