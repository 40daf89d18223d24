"""The command `python -m parity.scenic`."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from parity.scenic.check import GRADIENT_BOUND, OUTPUT_BOUND, CaseCheck, compare
from parity.scenic.files import Case, CaseError, load_case
from ttm_jax.cli import Parser, fail


def _parser() -> Parser:
    parser = Parser(
        prog="python -m parity.scenic",
        description="Check this library against cases computed with the original Scenic code: outputs and "
        "gradients, largest difference relative to the scale of each array.",
        epilog="example: python -m parity.scenic tests/data/scenic/*.npz\n\n"
        "exit status: 0 all in bounds, 1 one is out of bounds, 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="an .npz file holding one case")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each case as it is done; return 0 if all are in bounds, 1 if one is not, 2 on bad input."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        cases = [load_case(path) for path in options.files]
    except CaseError as error:
        return fail(parser, error)
    if options.json:
        checks = [compare(case) for case in cases]
        print(json.dumps({"cases": [_as_json(check) for check in checks], "ok": all(c.ok for c in checks)}))
    else:
        checks = _print_table(cases)
    return 0 if all(check.ok for check in checks) else 1


def _print_table(cases: Sequence[Case]) -> list[CaseCheck]:
    width = max(len(case.name) for case in cases)
    print(f"{'case':{width}}  outputs  gradients  ok")
    checks = []
    for case in cases:
        check = compare(case)
        verdict = "yes" if check.ok else "NO"
        print(f"{check.case:{width}}  {check.outputs:7.1e}  {check.gradients:9.1e}  {verdict}", flush=True)
        checks.append(check)
    bounds = f"{OUTPUT_BOUND:.0e} in outputs, {GRADIENT_BOUND:.0e} in gradients"
    print(f"{sum(check.ok for check in checks)} of {len(checks)} cases within {bounds} of the original")
    return checks


def _as_json(check: CaseCheck) -> dict[str, Any]:
    """Return the check with `ok`; null for a difference that is not finite, as JSON has none."""
    fields = asdict(check) | {"ok": check.ok}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
