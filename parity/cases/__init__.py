"""All comparisons. Cases do not depend on each other; the mutations run alone, after the others."""

from parity.cases import data, layers, machine, multiplier, mutations, scenic, training, weights
from parity.compare import Case

CASES: tuple[Case, ...] = (
    *scenic.CASES,
    *weights.CASES,
    *data.CASES,
    *layers.CASES,
    *machine.CASES,
    *training.CASES,
    *multiplier.CASES,
)
MUTATIONS: tuple[Case, ...] = mutations.CASES
