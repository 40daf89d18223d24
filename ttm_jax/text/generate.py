"""The command that lets a language model write on, as it goes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.files import PACKAGE, FileError, shipped
from ttm_jax.tasks import load
from ttm_jax.text.language_model import LanguageModel
from ttm_jax.text.tokenizer import as_text
from ttm_jax.training.checkpoint_files import CheckpointError

CHECKPOINT = shipped(PACKAGE, "checkpoints", "checkpoints") / "text"


def make_parser() -> Parser:
    """Make the command line."""
    parser = Parser(
        prog="python -m ttm_jax.generate",
        description="Text that a language model writes, as it goes. What it remembers does not grow.",
        epilog="example: python -m ttm_jax.generate runs/text-quick --prompt 'import ' --tokens 400",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default=argparse.SUPPRESS,
        help="a checkpoint, a run folder or a shipped name; where left out the shipped one of text",
    )
    parser.add_argument("--prompt", default="", help="what the text begins with; - reads it from stdin")
    parser.add_argument("--tokens", type=positive_int, default=400, help="how many to write")
    parser.add_argument("--temperature", type=_between(0, None), default=0.8, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=_count, default=40, help="draw from so many of the likeliest; 0: from all")
    parser.add_argument("--top-p", type=_between(0, 1), default=0.9, help="draw from the likeliest of this share")
    parser.add_argument("--seed", type=_count, default=0, help="of the draws")
    parser.add_argument("--samples", type=positive_int, default=1, help="texts beside each other, from one prompt")
    parser.add_argument("--state", type=Path, help="a file to go on from where it is there, and to save the state to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    checkpoint = getattr(args, "checkpoint", CHECKPOINT)
    try:
        model = load(checkpoint)
        if not isinstance(model, LanguageModel) or model.config.data.kind == "recall":
            return fail(
                parser,
                f"{checkpoint} is no language model; python -m ttm_jax.train --config text/quick trains one",
            )
        if args.state is not None and not args.state.parent.is_dir():
            return fail(parser, f"--state {args.state}: there is no folder {args.state.parent}")
        writer = model.writer(args.samples)
        if args.state is not None and args.state.exists():
            writer.load(args.state)
    except CheckpointError as error:
        return fail(parser, error)
    if writer.batch_size != args.samples:
        return fail(parser, f"--samples {args.samples}: the state of {args.state} has {writer.batch_size}")
    prompt = sys.stdin.buffer.read() if args.prompt == "-" else args.prompt
    writer.read(prompt)
    pieces = writer.write(args.tokens, args.temperature, args.top_k, args.top_p, args.seed)
    try:
        if args.samples == 1:
            print(_shown(prompt), end="", flush=True)
            for text in as_text(piece for (piece,) in pieces):
                print(text, end="", flush=True)
            print()
        else:
            for n, written in enumerate(zip(*pieces, strict=True), 1):
                print(f"--- {n}\n{_shown(prompt)}{''.join(as_text(written))}")
        if args.state is not None:
            writer.save(args.state)
    except FileError as error:
        return fail(parser, error, 1)
    return 0


def _shown(prompt: str | bytes) -> str:
    return prompt if isinstance(prompt, str) else prompt.decode("utf-8", "replace")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text!r}")
    return int(text)


def _between(low: float, high: float | None):
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low <= value and (high is None or value <= high)) or value == float("inf"):
            allowed = f"from {low} on" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be a number {allowed}, got {text!r}")
        return value

    return convert
