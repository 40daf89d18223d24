"""The public names: `parity/scenic/__init__.py` imports each from here when it is first asked for."""

from .check import (
    GRADIENT_BOUND as GRADIENT_BOUND,
    OUTPUT_BOUND as OUTPUT_BOUND,
    CaseCheck as CaseCheck,
    check_case as check_case,
    compare as compare,
    run as run,
)
from .files import Case as Case, CaseError as CaseError, load_case as load_case, shipped_cases as shipped_cases
from .names import from_scenic as from_scenic, to_scenic as to_scenic
from .original import MODES as MODES, build_machine as build_machine
