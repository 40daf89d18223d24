"""Checks of this library against the original implementation, case by case: outputs and gradients.

A case is an `.npz` file computed with the unmodified Scenic modules (`projects/token_turing`):
`meta` (JSON: the original class and its constructor arguments), `params/...` and `grads/...` under the
original's parameter names, `in/...` and `out/...`. The gradients are those of sum(out * cot), where `in/cot_...`
has the cotangents.
"""

from parity.scenic.check import GRADIENT_BOUND, OUTPUT_BOUND, CaseCheck, check_case, compare, run
from parity.scenic.files import Case, CaseError, load_case, shipped_cases
from parity.scenic.names import from_scenic, to_scenic
from parity.scenic.original import MODES, build_machine

__all__ = [
    "GRADIENT_BOUND",
    "MODES",
    "OUTPUT_BOUND",
    "Case",
    "CaseCheck",
    "CaseError",
    "build_machine",
    "check_case",
    "compare",
    "from_scenic",
    "load_case",
    "run",
    "shipped_cases",
    "to_scenic",
]
