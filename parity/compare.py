"""What "equal" means: the largest relative difference of arrays, and the row of a table that tells it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

FLOAT64_BOUND, FLOAT32_BOUND = 1e-10, 1e-5
# A gradient can be zero but for rounding: that of a bias to which a softmax or a LayerNorm is invariant.
ROUNDING = 64  # times the epsilon of the dtype and the largest number of all arrays: below it, an array is rounding

DEFINITION = (
    "max |a - b| / max |b| of an array, b being JAX's or the original's. Where b is zero but for rounding (max |b| at "
    f"most {ROUNDING} epsilon of the largest number of its kind: outputs, gradients, ...), max |a - b| over that "
    "largest number. Integers must be equal. inf: a name, shape or dtype differs, bits that must be the same are not, "
    "or a number is not finite."
)

Arrays = Mapping[str, Any]


class Difference(NamedTuple):
    """How far arrays are from each other, and the name of the farthest."""

    value: float
    at: str = ""


@dataclass(frozen=True)
class Row:
    """One comparison: `what` was compared, and how far it may differ. A mutation must differ by more (`above`)."""

    what: str
    difference: float
    bound: float
    at: str = ""
    above: bool = False

    @property
    def ok(self) -> bool:
        """Tell whether the difference is where it must be; False for NaN."""
        return self.difference > self.bound if self.above else self.difference <= self.bound


class Case(Protocol):
    """One comparison or several that belong together; PyTorch runs on `device`."""

    @property
    def name(self) -> str: ...

    def rows(self, device: str) -> list[Row]: ...


def largest_difference(ours: Arrays, theirs: Arrays) -> Difference:
    """Find the array of one kind (all outputs, all gradients) that differs most, by DEFINITION."""
    if unmatched := ours.keys() ^ theirs.keys():
        return Difference(math.inf, f"{min(unmatched)}, which one side lacks")
    arrays = {name: (np.asarray(ours[name]), np.asarray(theirs[name])) for name in theirs}
    largest = max((_largest_number(b) for _, b in arrays.values()), default=0.0)
    found = [Difference(0.0), *(_difference(name, a, b, largest) for name, (a, b) in arrays.items())]
    return max(found, key=lambda difference: difference.value)


def identical(ours: Arrays, theirs: Arrays) -> Difference:
    """Return 0 where all arrays have the same dtypes, shapes and bits; otherwise infinity and the name of one."""
    if unmatched := ours.keys() ^ theirs.keys():
        return Difference(math.inf, f"{min(unmatched)}, which one side lacks")
    for name in theirs:
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            return Difference(math.inf, name)
    return Difference(0.0)


def row(what: str, found: Difference, bound: float) -> Row:
    """Make the row of a difference."""
    return Row(what, found.value, bound, found.at)


def compared(label: str, bound: float, **kinds: tuple[Arrays, Arrays]) -> Row:
    """Make one row for several kinds of arrays (ours, theirs) that have the same bound."""
    found = {kind.replace("_", " "): largest_difference(*both) for kind, both in kinds.items()}
    worst = max(found, key=lambda kind: found[kind].value)
    return Row(f"{label}: {', '.join(found)}", found[worst].value, bound, f"{worst} {found[worst].at}".strip())


def _largest_number(array: np.ndarray) -> float:
    return float(np.abs(array.astype(np.float64)).max(initial=0.0)) if _is_float(array) else 0.0


def _difference(name: str, a: np.ndarray, b: np.ndarray, largest: float) -> Difference:
    told = f"{name}: {a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}"
    if a.shape != b.shape or _is_float(a) != _is_float(b):
        return Difference(math.inf, told)
    if not _is_float(b):
        return Difference(0.0 if np.array_equal(a, b) else math.inf, name)
    if a.dtype != b.dtype:
        return Difference(math.inf, told)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(wide_a).all() and np.isfinite(wide_b).all()):
        return Difference(math.inf, name)
    scale, eps = _largest_number(b), float(jnp.finfo(b.dtype).eps)
    if scale <= ROUNDING * eps * largest:
        scale = largest or 1.0
    return Difference(float(np.abs(wide_a - wide_b).max(initial=0.0)) / scale, name)


def _is_float(array: np.ndarray) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)
