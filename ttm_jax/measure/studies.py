"""What `python -m ttm_jax.ablations` compares: rows of trainings with one thing changed, and what comes of each."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ttm_jax.files import FileError
from ttm_jax.measure.report import mean_and_range, scaled
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.task import make_dataset
from ttm_jax.statistics import ratio_interval
from ttm_jax.tasks import load
from ttm_jax.text.analyse import analyse
from ttm_jax.text.corpus import evenly, read_corpus
from ttm_jax.text.evaluate import SEQUENCES, measure_recall
from ttm_jax.training.checkpoint_files import LATEST, find_checkpoint

REFERENCE = "reference"
DOCUMENTS, LONGEST = 40, 2**15  # of held-out text: how many are measured, and how many bytes of each
Runs = Mapping[str, list[dict[str, Any]]]  # of each row, in the order of their seeds


class Study(Protocol):
    """Trainings of one config, which is the budget of them all.

    Attributes:
        name: of the study.
        config: the name of the config.
        title: of the page, whose figures `about` says.
        results: the path of the results below their folder, without a suffix.
        rows: what each changes, as flags of `python -m ttm_jax.train`; the first changes nothing.
        label: of `score`, in a figure.
        limits: of a figure's axis; as the scores ask where None.
    """

    name: str
    config: str
    title: str
    about: str
    results: str
    rows: ClassVar[Mapping[str, tuple[str, ...]]]
    limits: tuple[float, float] | None

    @property
    def label(self) -> str: ...

    def summarize(self, run: Path, last: Mapping[str, Any]) -> dict[str, Any]:
        """Give what came of a run, as plain values: of its folder and the record of its last evaluation."""
        ...

    def columns(self, rows: Runs) -> dict[str, list[str]]:
        """Give the columns of the table, a cell for each row."""
        ...

    def score(self, run: Mapping[str, Any]) -> float:
        """Give what a figure shows of a run, out of what `summarize` gave."""
        ...


class Multiplication:
    """What each part of the multiplier is worth."""

    name = "multiplication"
    config = "ablation"
    title = "What each part is worth"
    about = """Held-out exact match in %, mean and range over the seeds, with one thing changed at a time. The budget is
[ablation.toml](../configs/multiplication/ablation.toml): short, so that the speed of learning is compared."""
    results = "ablations"
    rows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        REFERENCE: (),
        "no memory": ("--model.write", "none"),
        "memory 4": ("--model.memory-size", "4"),
        "memory 16": ("--model.memory-size", "16"),
        "memory 96": ("--model.memory-size", "96"),
        "read by queries": ("--model.read", "query"),
        "read by pooling": ("--model.read", "pooling"),
        "write by queries": ("--model.write", "query"),
        "write by pooling": ("--model.write", "pooling"),
        "write by erase and add": ("--model.write", "erase_add"),
        "write by concatenation": ("--model.write", "concat"),
        "a step for each product": ("--model.schedule", "product"),
        "a step for each product, no memory": ("--model.schedule", "product", "--model.write", "none"),
        "Mixer": ("--model.processing", "mixer"),
        "MLP": ("--model.processing", "mlp"),
        "plain Transformer": ("--model.kind", "transformer"),
        "plain Transformer of 4 blocks": ("--model.kind", "transformer", "--model.num-layers", "4"),
    }
    limits: tuple[float, float] | None = (-2, 102)

    def __init__(self, length: str = "3x2"):
        self.length = length
        self.label = f"held-out exact match on {length}, %"

    def summarize(self, run: Path, last: Mapping[str, Any]) -> dict[str, Any]:
        return {"examples": last["examples"], "exact_match": last["exact_match"]}

    def columns(self, rows: Runs) -> dict[str, list[str]]:
        lengths = next(iter(rows.values()))[0]["exact_match"]
        return {f"{n}, %": [mean_and_range(shares(runs, n)) for runs in rows.values()] for n in lengths}

    def score(self, run: Mapping[str, Any]) -> float:
        return shares([run], self.length)[0]


class Text:
    """What memory is worth to the language model, and how plain Transformers compare."""

    name = "text"
    config = "text/ablation"
    title = "What the machine is worth to a language model"
    about = """Bits per byte of 40 held-out documents, of each the first 32 KiB: mean and range over the seeds. The
interval is over documents, of the mean of the seeds; each seed's difference stands beside it. The budget is
[ablation.toml](../../configs/text/ablation.toml): short, so that the speed of learning is compared. All rows have its
learning rate, which was chosen for the reference."""
    results = "text/ablations"
    rows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        REFERENCE: (),
        "memory never written": ("--model.write", "none"),
        "no gate": ("--model.gate", "none"),
        "context of outputs alone": ("--model.context", "outputs"),
        "context of memory alone": ("--model.context", "memory"),
        "plain Transformer of 3 layers": ("--model.kind", "transformer", "--model.upper-layers", "1"),
        "plain Transformer of 4 layers, as large": ("--model.kind", "transformer", "--model.mlp-dim", "576"),
    }
    label = "held-out bits per byte"
    limits: tuple[float, float] | None = None

    def summarize(self, run: Path, last: Mapping[str, Any]) -> dict[str, Any]:
        model = load(find_checkpoint(run, (LATEST,)))  # the best is best on documents that are held out
        data = model.config.data
        corpus = read_corpus(data.path, data.patterns, data.held_out)
        texts = [document.data[:LONGEST] for document in evenly(corpus.held_out, DOCUMENTS)]
        carried, reset = ([float(bits.sum()) for bits in model.token_bits(texts, n)] for n in (None, 0))
        return {
            "forward_flops": analyse(model.config).forward_flops,
            "corpus": {"name": corpus.name, "digest": corpus.digest},
            "documents": {"bytes": list(map(len, texts)), "bits": carried, "bits_reset": reset},
        }

    def columns(self, rows: Runs) -> dict[str, list[str]]:
        corpora = {run["corpus"]["digest"] for runs in rows.values() for run in runs}
        if len(corpora) > 1:
            raise FileError(f"{self.results}.json: its runs are of {len(corpora)} corpora; move it away, or those runs")
        reference = rows.get(REFERENCE, [])
        return {
            "a token": [scaled(runs[0]["forward_flops"], "FLOP") for runs in rows.values()],
            "bits per byte": [_range(_per_byte(runs, "bits")) for runs in rows.values()],
            "more than the reference (95 %)": [_difference(runs, reference) for runs in rows.values()],
            "of each seed": [", ".join(_differences(runs, reference)) for runs in rows.values()],
            "reset at each segment": [_range(_per_byte(runs, "bits_reset")) for runs in rows.values()],
        }

    def score(self, run: Mapping[str, Any]) -> float:
        return _per_byte([run], "bits")[0]


class Recall:
    """How many facts memory carries, and what helps."""

    name = "recall"
    config = "text/recall_facts"
    title = "How many facts are recalled"
    about = """Recall in % over 8 segments, the last of the curriculum, whether or not a run has reached it: mean and
range over the seeds. Chance is 3.1 %. The budget is
[recall_facts.toml](../../configs/text/recall_facts.toml): at most 3,000 steps."""
    results = "text/recall_ablations"
    _16_FACTS = ("--recall.levels", "[[2,1],[2,2],[2,4],[2,8],[2,16],[3,16],[4,16],[6,16],[8,16]]")
    rows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        REFERENCE: (),
        "no gate": ("--model.gate", "none"),
        "erase and add": ("--model.write", "erase_add", "--model.gate", "none"),
        "erase and add, gate": ("--model.write", "erase_add"),
        "16 facts": _16_FACTS,
        "16 facts, memory 64": (*_16_FACTS, "--model.memory-size", "64"),
        "16 facts, memory 64, no gate": (*_16_FACTS, "--model.memory-size", "64", "--model.gate", "none"),
        "16 facts, memory 64, erase and add": (
            *_16_FACTS,
            *("--model.memory-size", "64"),
            *("--model.write", "erase_add", "--model.gate", "none"),
        ),
    }
    label = "recall over 8 segments, %"
    limits: tuple[float, float] | None = (-2, 102)

    def summarize(self, run: Path, last: Mapping[str, Any]) -> dict[str, Any]:
        found, _ = measure_recall(load(find_checkpoint(run, (LATEST,))), SEQUENCES)
        return {"reached": {name: last[name] for name in ("facts", "segments")}, **found}

    def columns(self, rows: Runs) -> dict[str, list[str]]:
        def column(cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
            return [", ".join(map(cell, runs)) for runs in rows.values()]

        longest = max(map(int, next(iter(rows.values()))[0]["recall"]))
        return {
            "steps": column(lambda run: f"{run['steps']:,}"),
            "facts x segments reached": column(lambda run: "{facts} x {segments}".format(**run["reached"])),
            "recalled, %": [mean_and_range([self.score(run) for run in runs]) for runs in rows.values()],
            f"over {longest} segments, %": [
                mean_and_range([_percent(run["recall"][str(longest)]) for run in runs]) for runs in rows.values()
            ],
            "memory wiped, %": [mean_and_range([_percent(run["wiped"]) for run in runs]) for runs in rows.values()],
        }

    def score(self, run: Mapping[str, Any]) -> float:
        return _percent(run["recall"][str(run["segments"])])


STUDIES: dict[str, Study] = {study.name: study for study in (Multiplication(), Text(), Recall())}


def shares(runs: Sequence[Mapping[str, Any]], length: str) -> list[float]:
    """Return the percentage of the pairs of a length that each run of multiplication answers right."""
    return [_percent(run["exact_match"][length]) for run in runs]


def trained_lengths(config: Config) -> list[str]:
    """List the operand lengths that a run of this config is trained on at its last stage."""
    stage = config.curriculum.last_stage
    return list(map(str, make_dataset(config, 1, stage).lengths(stage)))


def _percent(counts: Mapping[str, int]) -> float:
    return 100 * counts["correct"] / counts["total"]


def _range(values: Sequence[float]) -> str:
    """Mean and range; of one number the number."""
    mean, low, high = (f"{x:.3f}" for x in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} - {high})"


def _per_byte(runs: Sequence[Mapping[str, Any]], kind: str) -> list[float]:
    return [sum(run["documents"][kind]) / sum(run["documents"]["bytes"]) for run in runs]


def _paired(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Bits of each document more than the reference, of each seed that both have; none of the reference itself."""
    of_seed = {} if runs is reference else {run["seed"]: run for run in reference}
    both = [(run, of_seed[run["seed"]]) for run in runs if run["seed"] in of_seed]
    return [np.subtract(*(each["documents"]["bits"] for each in pair)) for pair in both]


def _differences(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> list[str]:
    """Bits per byte more than the reference, of each seed."""
    total = sum(runs[0]["documents"]["bytes"])
    return [f"{bits.sum() / total:+.3f}" for bits in _paired(runs, reference)]


def _difference(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> str:
    """Their mean, with the interval over documents."""
    if not (paired := _paired(runs, reference)):
        return ""
    bits_D, bytes_D = np.mean(paired, axis=0), np.array(runs[0]["documents"]["bytes"], np.float64)
    low, high = ratio_interval(bits_D, bytes_D)
    return f"{bits_D.sum() / bytes_D.sum():+.3f} ({low:+.3f} to {high:+.3f})"
