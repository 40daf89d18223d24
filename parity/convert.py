"""The command that carries a checkpoint from one twin to the other: `python -m parity.convert`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from parity.needs import missing_package
from ttm_jax.cli import Parser, command, fail
from ttm_jax.training.checkpoint_files import JAX_FORMAT, CheckpointError, find_checkpoint, read_format


def convert_checkpoint(source: str | Path, target: str | Path) -> Path:
    """Write the weights of a checkpoint, to the bit, as one of the other twin; return the path that was read.

    What is known of the training goes along; the optimiser's state does not. The result is for use and evaluation.

    Args:
        source: a checkpoint, a run folder, whose best checkpoint is taken, or the name of a shipped one.
        target: a folder that does not exist yet.

    Raises:
        CheckpointError: if the source is missing, damaged or of a model that the other twin does not have, or if the
            target exists or cannot be written.
    """
    import jax

    import ttm_jax.training.checkpoint
    import ttm_torch.training.checkpoint
    from parity.weights import to_jax, to_torch
    from ttm_jax.multiplication.objective import make_objective
    from ttm_jax.training.config import ConfigError
    from ttm_torch.multiplication.objective import create_model

    path, target = find_checkpoint(source), Path(target)
    if target.exists():
        raise CheckpointError(f"{target}: there is something already; name a new folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with jax.enable_x64(True):  # weights in float64 are carried whatever JAX is allowed otherwise
            if read_format(path) == JAX_FORMAT:
                config, meta = ttm_jax.training.checkpoint.load_meta(path)
                twin = create_model(config)
                twin.load_state_dict(to_torch(ttm_jax.training.checkpoint.load_params(path, make_objective(config))))
                ttm_torch.training.checkpoint.save_model(target, twin, meta)
            else:
                config, meta = ttm_torch.training.checkpoint.load_meta(path)
                twin = ttm_torch.training.checkpoint.load_model(path, create_model(config))
                like = jax.eval_shape(make_objective(config).init, jax.random.key(0))
                ttm_jax.training.checkpoint.save_params(target, to_jax(twin.state_dict(), like), meta)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror}") from None
    return path


def _parser() -> Parser:
    parser = Parser(
        prog="python -m parity.convert",
        description="Carries a checkpoint of ttm_jax to ttm_torch, or back: the same weights to the bit, without the "
        "optimiser's state.",
        epilog="example: python -m parity.convert multiplication runs/multiplication-torch\n\n"
        "exit status: 0 written, 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="CHECKPOINT", help="of either twin, a run folder, or a shipped one's name")
    parser.add_argument("target", type=Path, metavar="NEW_FOLDER", help="where the other twin's is written")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 where the checkpoint is written, 2 on bad input."""
    parser = _parser()
    options = parser.parse_args(argv)
    if missing := missing_package():
        return fail(parser, missing)
    try:
        source = convert_checkpoint(options.source, options.target)
    except CheckpointError as error:
        return fail(parser, error)
    package = "ttm_torch" if read_format(source) == JAX_FORMAT else "ttm_jax"
    print(f"written: {options.target}, of {source}; python -m {package}.evaluate {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
