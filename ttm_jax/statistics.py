"""Intervals of what was counted or averaged."""

import math

import numpy as np


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion, 95 % by default; (0, 1) where there is no trial."""
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    centre = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def ratio_interval(values_D: np.ndarray, weights_D: np.ndarray, samples: int = 2000) -> tuple[float, float]:
    """Compute the 95 % interval of sum(values) / sum(weights) by drawing the pairs anew (bootstrap, percentiles)."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(values_D), size=(samples, len(values_D)))
    ratios = values_D[drawn].sum(axis=1) / weights_D[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
