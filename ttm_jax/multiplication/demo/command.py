"""The demo: a trained network multiplies what is typed, and shows how."""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from ttm_jax.cli import Parser, fail, this_python
from ttm_jax.multiplication.demo.picture import SUFFIXES, PictureError, save_picture
from ttm_jax.multiplication.demo.problem import EXAMPLE, ProblemError, parse_problem
from ttm_jax.multiplication.demo.terminal import answer_line, render
from ttm_jax.multiplication.demo.trace import trace
from ttm_jax.multiplication.inside import load_machine
from ttm_jax.multiplication.multiplier import Multiplier
from ttm_jax.training.checkpoint_files import CheckpointError

CHECKPOINT = "five_digits"
_QUIT = ("q", "quit", "exit")


def make_parser() -> Parser:
    """Make the command line."""
    parser = Parser(
        prog="python -m ttm_jax.demo",
        description="A trained Token Turing Machine multiplies what you type, digit by digit, and shows how.",
        epilog=f"example: python -m ttm_jax.demo '{EXAMPLE}' --checkpoint runs/default",
    )
    parser.add_argument("problem", nargs="*", help=f"a product such as '{EXAMPLE}'; asked for where left out")
    parser.add_argument(
        "--checkpoint", default=CHECKPOINT, help=f"a path, or the name of a shipped checkpoint (default: {CHECKPOINT})"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object a product, with all that can be shown")
    output.add_argument("--plot", type=Path, metavar="FILE", help="the memory over the steps, as .png or .html")
    output.add_argument("--page", action="store_true", help="a page for the browser, on this machine only")
    parser.add_argument("--port", type=_port, help="of the page; a free one where left out")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    # A space before what looks like a negative number: it is a bad problem then, not an unknown flag.
    arguments = [re.sub(r"^(?=-[0-9])", " ", argument) for argument in (sys.argv[1:] if argv is None else argv)]
    args = parser.parse_args(arguments)
    try:
        return _run(parser, args)
    except (CheckpointError, ProblemError, PictureError) as error:
        return fail(parser, error)


def _run(parser: Parser, args: argparse.Namespace) -> int:
    """Do what the flags ask for; say what is wrong with them before the model is loaded."""
    problem = parse_problem(" ".join(args.problem)) if args.problem else None
    if args.port is not None and not args.page:
        return fail(parser, "--port goes with --page")
    if args.plot and problem is None:
        return fail(parser, f"--plot wants a product: {this_python()} -m ttm_jax.demo '{EXAMPLE}' --plot {args.plot}")
    if args.plot and args.plot.suffix.lower() not in SUFFIXES:
        return fail(parser, f"--plot {args.plot}: the file must end in {' or '.join(SUFFIXES)}")
    if args.plot and not args.plot.parent.is_dir():
        return fail(parser, f"--plot {args.plot}: there is no folder {args.plot.parent}")
    if args.page:
        return _serve(parser, args, problem)

    multiplier = load_machine(args.checkpoint)
    warm_up(multiplier)
    if problem is None:
        return _converse(multiplier, args.json)
    result = trace(multiplier, *problem)
    console = Console(highlight=False)
    if args.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return 0
    console.print(answer_line(result), soft_wrap=True)
    if args.plot:
        save_picture(args.plot, result)
        console.print(f"picture: {args.plot}", soft_wrap=True)
    else:
        console.print(render(result))
    return 0


def warm_up(multiplier: Multiplier) -> None:
    """Compile, so that the time of an answer is that of the network."""
    trace(multiplier, 1, 1)


def _so_far(answers: list[bool]) -> str:
    percent = f" ({100 * sum(answers) / len(answers):.0f} %)" if answers else ""
    return f"{sum(answers)} of {len(answers)} right{percent}"


def _converse(multiplier: Multiplier, as_json: bool) -> int:
    """Answer products from stdin until it ends; return 2 if lines that no one typed by hand were not all products."""
    interactive = sys.stdin.isatty()
    console = Console(highlight=False)
    answers: list[bool] = []
    refused = 0
    if interactive and not as_json:
        size = multiplier.config.model
        console.print(f"A Token Turing Machine with {size.memory_size} memory tokens, from {multiplier.path}")
        console.print(f"Type a product such as {EXAMPLE} or 123 x 45; q or Ctrl-D ends.")
    for line in _lines(interactive):
        if not line.strip():
            continue
        if line.strip().lower() in _QUIT:
            break
        try:
            result = trace(multiplier, *parse_problem(line))
        except ProblemError as error:
            print(error, file=sys.stderr, flush=True)
            refused += 1
            continue
        answers.append(result.correct)
        if as_json:
            session = {"correct": sum(answers), "total": len(answers)}
            print(json.dumps({**result.to_dict(), "session": session}, ensure_ascii=False), flush=True)
            continue
        console.print(answer_line(result).append(f"  so far {_so_far(answers)}", "dim"), soft_wrap=True)
        console.print(render(result))
        console.print()
    if interactive and not as_json:
        console.print(f"\n{_so_far(answers)}")
    return 2 if refused and not interactive else 0


def _lines(interactive: bool) -> Iterator[str]:
    """Yield the lines of stdin; Ctrl-C and Ctrl-D end them where someone types."""
    if not interactive:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits lines and remembers them
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")


def _serve(parser: Parser, args: argparse.Namespace, problem: tuple[int, int] | None) -> int:
    try:
        from ttm_jax.multiplication.demo.server import bind, serve
    except ModuleNotFoundError as error:
        missing = f"--page needs the extra demo ({error.name} is missing)"
        return fail(parser, f"{missing}: {this_python()} -m pip install 'token-turing-machine[demo]'")
    try:
        listener = bind(args.port or 0)
    except OSError as error:
        return fail(parser, f"--port {args.port}: {os.strerror(error.errno or 0)}; leave it out for a free one")
    with listener:
        multiplier = load_machine(args.checkpoint)
        warm_up(multiplier)
        serve(multiplier, listener, problem)
    return 0


def _port(text: str) -> int:
    if not text.strip().isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text.strip()!r}")
    return int(text)
