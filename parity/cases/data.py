"""The data: both packages give the same batches and held-out sets, and they are those that they have always been.

The twins share the code of the data, which needs only NumPy. They differ once one of them stops sharing it. The
checksums differ once the data change.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

import ttm_jax
import ttm_torch
from parity.compare import Arrays, Difference, Row, identical, row

_SEEDS_AND_STEPS = ((0, 0), (0, 1), (3, 1000), (2**32 - 1, 7))


@dataclass(frozen=True, eq=False)
class DataCase:
    """The arrays of `make(package)`, which must be the same to the bit for both packages, and their checksum.

    Attributes:
        checksum: of `make(package)`. Where the data are meant to change, renew it and tell so in the changelog.
    """

    name: str
    make: Callable[[Any], Arrays]
    checksum: str

    def rows(self, device: str) -> list[Row]:
        ours, theirs = self.make(ttm_torch), self.make(ttm_jax)
        return [
            row("all arrays, to the bit", identical(ours, theirs), 0.0),
            row(f"SHA-256 of ttm_jax's, {self.checksum[:8]}...", self._against_checksum(theirs), 0.0),
            row(f"SHA-256 of ttm_torch's, {self.checksum[:8]}...", self._against_checksum(ours), 0.0),
        ]

    def _against_checksum(self, arrays: Arrays) -> Difference:
        found = checksum(arrays)
        return Difference(0.0) if found == self.checksum else Difference(math.inf, f"which is now {found}")


def checksum(arrays: Arrays) -> str:
    """Compute the SHA-256 of names, shapes and numbers, in order."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).astype("<i8").tobytes())
    return digest.hexdigest()


def _batches(package: Any) -> Arrays:
    """Draw batches at every stage, of several seeds and steps, with and without a mixture and augmentation."""
    arrays: dict[str, Any] = {}
    for stage, augment in product(range(7), ((), ("swap", "leading_zeros"))):
        dataset = package.MultiplicationDataset(batch_size=16, start_stage=stage, augment=augment)
        mixtures = (None, [1.0 / (i + 1) for i in range(len(dataset.lengths()))])
        for (seed, step), mixture in product(_SEEDS_AND_STEPS, mixtures):
            batch = dataset.batch(seed, step, mixture)
            of = f"stage {stage}, augment {augment}, seed {seed}, step {step}, mixture {mixture is not None}"
            arrays |= {f"{name}, {of}": array for name, array in batch._asdict().items()}
    return arrays


def _generated(package: Any) -> Arrays:
    """Draw by `generate_batch` while the difficulty rises, with other ranges and limits."""
    dataset = package.MultiplicationDataset(
        8, seed=5, stages=((0, 99), (10, 999)), max_digits=(3, 2), augment=("swap",)
    )
    arrays: dict[str, Any] = {}
    for call in range(6):
        inputs, targets = dataset.generate_batch()
        uniform_Bx2 = np.random.Philox(key=call).random_raw((8, 2)) / 2.0**64
        augmented, _ = package.augment_batch(inputs, targets, uniform_Bx2)
        arrays |= {f"inputs {call}": inputs, f"targets {call}": targets, f"augmented {call}": augmented}
        if call == 2:
            dataset.increase_difficulty()
    return arrays


def _held_out(package: Any) -> Arrays:
    """List the pairs that evaluation asks for, of each operand length, and the pairs that training must not sample."""
    lengths = [(long, short) for long in range(1, 6) for short in range(1, long + 1)]
    sets = {f"{long}x{short}": package.held_out_pairs((long, short), 100) for long, short in lengths}
    grid = np.arange(200)
    return sets | {"is_held_out": package.is_held_out(grid[:, None], grid[None])}


CASES = (
    DataCase("data/batches", _batches, "0294be274113efffa7527f08acb60ccd2c416972e2ffecdfa96e9fd17bb01662"),
    DataCase("data/generate_batch", _generated, "39511bb487ed55a1e799ddbd576ddd7bb48efbed2889fcf59f1e8e2ad1782dd0"),
    DataCase("data/held_out", _held_out, "35cce448480c3768390e740b4d96327f3c8375d79c490f4213fd82f2c22aafd8"),
)
