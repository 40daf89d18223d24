"""The command that measures a checkpoint of the twin on held-out pairs.

python -m ttm_torch.evaluate runs/default-torch
"""

import sys
from functools import partial

from ttm_jax.cli import command, fail
from ttm_jax.multiplication.grid import make_evaluation_parser, run_evaluation
from ttm_jax.training.config import ConfigError
from ttm_torch.multiplication.multiplier import load
from ttm_torch.training.device import add_device_flag, find_device, provenance


@command
def main(argv: list[str] | None = None) -> int:
    parser = make_evaluation_parser("ttm_torch", "runs/default-torch")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    try:
        device = find_device(args.device)
    except ConfigError as error:
        return fail(parser, error)
    return run_evaluation(parser, args, partial(load, device=device), partial(provenance, device))


if __name__ == "__main__":
    sys.exit(main())
