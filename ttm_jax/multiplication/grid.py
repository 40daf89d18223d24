"""Exact match on held-out pairs by operand lengths, and the command that measures it, the same for both twins."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.multiplication.problems import MAX_DIGITS, held_out_pairs, place_power
from ttm_jax.multiplication.scores import AnyMultiplier, Score, add_scores, answer_pairs, score_answers
from ttm_jax.statistics import wilson_interval
from ttm_jax.training.checkpoint_files import CheckpointError, describe_training, find_checkpoint


def evaluate_grid(
    multiplier: AnyMultiplier,
    max_digits: int = MAX_DIGITS,
    pairs: int = 1000,
    batch_size: int = 512,
    progress: bool = False,
) -> dict[str, Score]:
    """Score a multiplier on each pair of operand lengths "1x1", "1x2", ..., on at most `pairs` held-out pairs each.

    "3x2" is a first operand of three digits by a second one of two. The pairs of "1x1" are those of training,
    which holds none of them out.
    """
    scores = {}
    digits = range(1, max_digits + 1)
    for n in track(digits, "evaluating", console=Console(stderr=True), transient=True, disable=not progress):
        sets = [held_out_pairs((n, m), pairs) for m in digits]
        answers = answer_pairs(multiplier, np.concatenate(sets), 2 * max_digits + 1, batch_size)
        ends = np.cumsum([len(pairs_Px2) for pairs_Px2 in sets])[:-1]
        for m, predictions, targets in zip(digits, *(np.split(tokens, ends) for tokens in answers), strict=True):
            scores[f"{n}x{m}"] = score_answers(predictions, targets)
    return scores


def report(scores: dict[str, Score], seconds: float) -> dict:
    """Return the scores as one JSON object.

    "exact_match" maps each length to its "correct" and "total" pairs. "digits" maps each length, and "all", to the
    digits at each place of the product, units first, with intervals. Position accuracy counts digits and closing EOS.
    """
    everything = add_scores(list(scores.values()))
    positions = sum(everything.digit_total) + everything.total
    return {
        "exact_match": {name: {"correct": s.correct, "total": s.total} for name, s in scores.items()},
        "interval_95": {name: list(wilson_interval(s.correct, s.total)) for name, s in scores.items()},
        "digits": {name: _digits(score) for name, score in {"all": everything, **scores}.items()},
        "position_accuracy": (sum(everything.digit_correct) + everything.end_correct) / positions,
        "sequence_accuracy": everything.accuracy,
        "seconds": seconds,
    }


def _digits(score: Score) -> dict[str, list]:
    counts = [pair for pair in zip(score.digit_correct, score.digit_total, strict=True) if pair[1]]
    correct, total = (list(column) for column in zip(*counts, strict=True))
    return {"correct": correct, "total": total, "interval_95": [list(wilson_interval(*pair)) for pair in counts]}


def digit_table(scores: dict[str, Score]) -> Table:
    """Make the table of how many digits are right, by length and by place in the product."""
    title = "% of the digits of the products right, by their place"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)  # ten places in 80 columns
    table.add_column("digits", justify="right")
    for place in range(max(sum(map(bool, score.digit_total)) for score in scores.values())):
        table.add_column(place_power(place), justify="right")
    for name, score in scores.items():
        table.add_row(name.replace("x", " x "), *_percentages(score))
    return table


def _percentages(score: Score) -> list[str]:
    """Write the percentage of right digits at each place that has any."""
    counts = zip(score.digit_correct, score.digit_total, strict=True)
    return [f"{100 * correct / total:.1f}" for correct, total in counts if total]


def grid_table(scores: dict[str, Score]) -> Table:
    """Make the n x m grid for people: percentage, interval and counts."""
    digits = sorted({name.split("x")[0] for name in scores})
    table = Table(title="exact match on held-out pairs: %, 95 % interval, right/pairs", title_justify="left")
    table.add_column("digits", justify="right")
    for m in digits:
        table.add_column(f"x {m}", justify="right")
    for n in digits:
        cells = []
        for m in digits:
            score = scores[f"{n}x{m}"]
            low, high = wilson_interval(score.correct, score.total)
            cells.append(f"{100 * score.accuracy:.1f}\n{100 * low:.1f}-{100 * high:.1f}\n{score.correct}/{score.total}")
        table.add_row(n, *cells, end_section=True)
    return table


def make_evaluation_parser(package: str, run: str) -> Parser:
    """Make the command line of `package`.evaluate; its example names the run folder `run`."""
    parser = Parser(
        prog=f"python -m {package}.evaluate",
        description="Exact match of a trained multiplier on held-out pairs, by the digits of the operands.",
        epilog=f"example: python -m {package}.evaluate {run} --pairs 1000",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a checkpoint, a run folder (its best one), or the name of a shipped one")
    parser.add_argument("--pairs", type=positive_int, default=1000, help="held-out pairs a cell, at most")
    parser.add_argument(
        "--max-digits", type=int, choices=range(1, MAX_DIGITS + 1), default=MAX_DIGITS, help="of an operand"
    )
    parser.add_argument("--batch-size", type=positive_int, default=512, help="problems computed at a time")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--digits", action="store_true", help="print also how many digits are right, by their place")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def run_evaluation(
    parser: Parser,
    args: argparse.Namespace,
    load: Callable[[Path], AnyMultiplier],
    provenance: Callable[[], dict[str, Any]],
    wiped: bool = False,
) -> int:
    """Measure as the flags ask, print the result, and return the exit code.

    Args:
        parser: as of `make_evaluation_parser`.
        args: what the parser read.
        load: gives the multiplier of a checkpoint, or raises CheckpointError.
        provenance: says where the result comes from.
        wiped: whether `load` wipes the multiplier's memory; the result says so.
    """
    try:
        checkpoint = find_checkpoint(args.checkpoint)  # once: a training may have a better one by the end
        multiplier, training = load(checkpoint), describe_training(checkpoint)
    except CheckpointError as error:
        return fail(parser, error)

    start = time.perf_counter()
    progress = not args.json and sys.stderr.isatty()
    scores = evaluate_grid(multiplier, args.max_digits, args.pairs, args.batch_size, progress)
    result = report(scores, time.perf_counter() - start)
    if args.json:
        where = {"training": training, "provenance": provenance()}
        print(json.dumps({"checkpoint": args.checkpoint, "memory_wiped": wiped, **result, **where}))
        return 0
    console = Console()
    note = ", memory wiped before each machine step" if wiped else ""
    console.print(f"checkpoint {checkpoint}{note}", highlight=False, soft_wrap=True)
    console.print(grid_table(scores))
    if args.digits:
        console.print(digit_table(scores))
    console.print("1 x 1 is all 100 pairs, trained on too; no other pair was ever trained on.")
    places = "  ".join(_percentages(add_scores(list(scores.values()))))
    console.print(f"% of digits right by place, units first: {places}", highlight=False)
    console.print(
        f"position accuracy {100 * result['position_accuracy']:.2f} %, "
        f"sequence accuracy {100 * result['sequence_accuracy']:.2f} % over the grid, "
        f"{sum(s.total for s in scores.values())} pairs in {result['seconds']:.1f} s",
        highlight=False,
    )
    return 0
