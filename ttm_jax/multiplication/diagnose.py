"""The command that looks for the causes of a checkpoint's wrong answers."""

import argparse
import json
import re
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.multiplication.inside import load_machine, look_inside
from ttm_jax.multiplication.metrics import exact_match
from ttm_jax.multiplication.model import TTMModel
from ttm_jax.multiplication.multiplier import Multiplier
from ttm_jax.multiplication.problems import (
    MAX_DIGITS,
    count_digits,
    encode_problems,
    held_out_pairs,
    place_power,
    schoolbook_carries,
)
from ttm_jax.multiplication.scores import answer_pairs
from ttm_jax.multiplication.steps import steps_of_places
from ttm_jax.multiplication.vocab import EOS_TOKEN
from ttm_jax.training.checkpoint_files import CheckpointError
from ttm_jax.training.rows import predict_rows
from ttm_jax.training.run_folder import provenance
from ttm_jax.training.settings import lenient

LENGTHS = ("1x1", "2x2", "3x3", "4x4", "5x5")
CARRY_WRONG, CARRY_LEFT_OUT, SUM_WRONG, END_WRONG = CAUSES = "carry wrong", "carry left out", "sum wrong", "end wrong"
FIRST, SECOND, MEMORY, REST = READ = "first operand", "second operand", "memory", "the rest"


@lenient()
def diagnose(multiplier: Multiplier, length: str, pairs: int = 1000, batch_size: int = 256) -> dict[str, Any]:
    """Find what is wrong with the answers to held-out pairs of a length such as "3x2", and what the network did.

    Returns:
        "pairs", "wrong": the number of pairs, and of those answered wrongly.
        "first_wrong_place": wrong answers by the place of their first wrong digit, units first.
        "causes": wrong answers by CAUSES, as `find_causes` counts them.
        "carries": of each place, units first, the carries out of it that the carry head has right ("correct"), and all
            ("total"). Only places before another digit count. None without a carry head.
        "read": the mean share of the read weights on each of READ, over all steps up to the last digit.

    Raises:
        ValueError: if the length is not two numbers of 1 to 5 digits.
    """
    n, m = parse_length(length)
    pairs_Px2 = held_out_pairs((n, m), pairs)
    predictions, targets = answer_pairs(multiplier, pairs_Px2, batch_size=batch_size)
    carries, read = _look(multiplier, n, m, pairs_Px2, batch_size)
    true_carries = schoolbook_carries(*pairs_Px2.T)
    wrong = ~exact_match(predictions, targets)
    places = _first_wrong_places(predictions[wrong], targets[wrong])
    before_another = np.arange(targets.shape[1]) + 1 < count_digits(pairs_Px2.prod(axis=1))[:, None]
    known = None
    if carries is not None:
        counted = {"correct": before_another & (carries == true_carries), "total": before_another}
        known = {name: counts.sum(axis=0)[: n + m - 1].tolist() for name, counts in counted.items()}
    return {
        "pairs": len(pairs_Px2),
        "wrong": int(wrong.sum()),
        "first_wrong_place": np.bincount(places, minlength=n + m + 1).tolist(),
        "causes": find_causes(
            predictions[wrong], targets[wrong], true_carries[wrong], None if carries is None else carries[wrong]
        ),
        "carries": known,
        "read": dict(zip(READ, read, strict=True)),
    }


def find_causes(
    predictions_PxT: np.ndarray,
    targets_PxT: np.ndarray,
    true_carries_PxT: np.ndarray,
    carries_PxT: np.ndarray | None,
) -> dict[str, int]:
    """Count wrong answers by what happened at their first wrong place.

    "end wrong": the number ends there, or was ended. With a carry head, "carry wrong": the head had said another carry
    out of the place before. And "carry left out": the head was right, but the digit is that of the column's products
    alone, which comes about by chance too. All else is "sum wrong".

    The head reads the output of a step, not the memory that the next one finds. A carry that was changed in between
    counts as "sum wrong". Where a carry of 10, 20, ... was left out nothing shows it.

    Args:
        predictions_PxT: tokens of wrong answers.
        targets_PxT: tokens of the right ones.
        true_carries_PxT: as of `schoolbook_carries`.
        carries_PxT: as the carry head has them; None without one.
    """
    rows, places_P = np.arange(len(targets_PxT)), _first_wrong_places(predictions_PxT, targets_PxT)
    written, true = predictions_PxT[rows, places_P], targets_PxT[rows, places_P]
    end = (written >= EOS_TOKEN) | (true >= EOS_TOKEN)
    counts = {END_WRONG: end}
    if carries_PxT is not None:
        before = np.maximum(places_P - 1, 0)
        carry_in = np.where(places_P > 0, true_carries_PxT[rows, before], 0)
        said = np.where(places_P > 0, carries_PxT[rows, before], 0)
        counts[CARRY_WRONG] = ~end & (said != carry_in)
        counts[CARRY_LEFT_OUT] = ~end & (said == carry_in) & (written == (true - carry_in) % 10)
    counts[SUM_WRONG] = ~np.logical_or.reduce(list(counts.values()))
    return {cause: int(counts[cause].sum()) for cause in CAUSES if cause in counts}


def _first_wrong_places(predictions_PxT: np.ndarray, targets_PxT: np.ndarray) -> np.ndarray:
    return np.argmax(predictions_PxT != targets_PxT, axis=1)


def parse_length(text: str) -> tuple[int, int]:
    """Return the digits of both operands of a length such as "3x2".

    Raises:
        ValueError: if it is no such text, or has more than 5 digits.
    """
    found = re.fullmatch(rf"([1-{MAX_DIGITS}])x([1-{MAX_DIGITS}])", text)
    if not found:
        raise ValueError(f"a length is such as 3x2, of 1 to {MAX_DIGITS} digits each, got {text!r}")
    return int(found[1]), int(found[2])


def _look(
    multiplier: Multiplier, n: int, m: int, pairs_Px2: np.ndarray, batch_size: int
) -> tuple[np.ndarray | None, list[float]]:
    """Return the carries out of all places [P, S] by the head (None without one), and the read shares by READ."""
    config = multiplier.config.model
    inputs = encode_problems(*pairs_Px2.T)
    look = partial(_carries_and_reads, multiplier.model, multiplier.variables)
    found = predict_rows(lambda chunk: look(chunk["inputs"]), {"inputs": inputs}, batch_size, jax.device_get)
    read_PxUxX = found["reads"]
    # Reads count up to the step that works out the last digit.
    ends = np.array([steps.stop for steps in steps_of_places(config.schedule, n, m)])
    in_product = np.arange(read_PxUxX.shape[1]) < ends[count_digits(pairs_Px2.prod(axis=1)) - 1, None]
    read_X = read_PxUxX[in_product].mean(axis=0)
    memory, problem = np.split(read_X, [config.memory_size])
    shares = [problem[:n].sum(), problem[n + 1 : n + 1 + m].sum(), memory.sum()]
    return found.get("carries"), [*map(float, shares), float(read_X.sum() - sum(shares))]


@partial(jax.jit, static_argnums=0)
def _carries_and_reads(model: TTMModel, variables: dict, inputs_BxS: jax.Array) -> dict[str, jax.Array]:
    inside = look_inside(model, variables, inputs_BxS)
    carries = {} if inside.carries is None else {"carries": inside.carries.argmax(axis=-1)}
    return {"reads": inside.read.mean(axis=2), **carries}


def make_tables(found: dict[str, dict[str, Any]]) -> list[Table]:
    """Make the tables for people of what `diagnose` found for each length."""
    causes = _table("wrong answers to held-out pairs", "wrong / pairs", *CAUSES, "carries right")
    places = _table(
        "their first wrong digit, by its place", *map(place_power, range(max(map(sum, map(parse_length, found))) + 1))
    )
    reads = _table("where the reads looked", *READ)
    for length, row in found.items():
        name, known = length.replace("x", " x "), row["carries"]
        causes.add_row(
            name,
            f"{row['wrong']} / {row['pairs']}",
            *(str(row["causes"].get(cause, "-")) for cause in CAUSES),
            "-" if known is None else _percent(sum(known["correct"]), sum(known["total"])),
        )
        places.add_row(name, *map(str, row["first_wrong_place"]))
        reads.add_row(name, *(_percent(row["read"][part]) for part in READ))
    return [causes, places, reads]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("digits", *columns):
        table.add_column(column, justify="right")
    return table


def _percent(part: float, whole: float = 1.0) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def make_parser() -> Parser:
    """Make the command line."""
    parser = Parser(
        prog="python -m ttm_jax.diagnose",
        description="The wrong answers of a checkpoint to held-out pairs: their first wrong digits, whether the carry "
        "into them was known, and where the reads looked.",
        epilog="example: python -m ttm_jax.diagnose multiplication 3x3 4x4",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a checkpoint, a run folder (its best one), or the name of a shipped one")
    parser.add_argument("lengths", nargs="*", type=_length, default=LENGTHS, help="digits of the operands, such as 3x2")
    parser.add_argument("--pairs", type=positive_int, default=1000, help="held-out pairs of a length, at most")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="problems computed at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        multiplier = load_machine(args.checkpoint)
    except CheckpointError as error:
        return fail(parser, error)
    found = {length: diagnose(multiplier, length, args.pairs, args.batch_size) for length in args.lengths}
    if args.json:
        print(json.dumps({"checkpoint": args.checkpoint, "lengths": found, "provenance": provenance()}))
        return 0
    console = Console()
    console.print(f"checkpoint {multiplier.path}", highlight=False, soft_wrap=True)
    for table in make_tables(found):
        console.print(table)
    console.print(_legend(multiplier.config.model.carry_head), highlight=False)
    return 0


def _legend(carry_head: bool) -> str:
    head = (
        f"{CARRY_WRONG}: the carry head, which reads the output of the step before, had said another carry into that "
        f"digit; {CARRY_LEFT_OUT}: it had said the right one, but the digit is that of its column without it"
        if carry_head
        else "There is no carry head, so what was carried is not known"
    )
    return (
        f"{head}; {SUM_WRONG}: any other wrong digit; {END_WRONG}: the number ended there, or should have. "
        f"Reads: shares of their weights; {REST} is on the sign and what follows the problem."
    )


def _length(text: str) -> str:
    try:
        parse_length(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
