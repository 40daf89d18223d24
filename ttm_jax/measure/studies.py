"""What `python -m ttm_jax.ablations` compares: rows of trainings with one thing changed, and what comes of each."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ttm_jax.measure.report import mean_and_range
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.task import make_dataset
from ttm_jax.statistics import ratio_interval
from ttm_jax.tasks import load

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
difference to the reference is the mean over the seeds, with the 95 % interval over documents. The budget is
[ablation.toml](../../configs/text/ablation.toml): short, so that the speed of learning is compared."""
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
        from ttm_jax.text.corpus import evenly, read_corpus  # here alone: trainings run in other processes

        model = load(run)
        data = model.config.data
        corpus = read_corpus(data.path, data.patterns, data.held_out)
        texts = [document.data[:LONGEST] for document in evenly(corpus.held_out, DOCUMENTS)]
        carried, reset = ([float(bits.sum()) for bits in model.token_bits(texts, n)] for n in (None, 0))
        found = {"bytes": list(map(len, texts)), "bits": carried, "bits_reset": reset}
        return {"corpus": {"name": corpus.name, "digest": corpus.digest}, "documents": found}

    def columns(self, rows: Runs) -> dict[str, list[str]]:
        return {
            "bits per byte": [_range(_per_byte(runs, "bits"), ".3f") for runs in rows.values()],
            "more than the reference": [_difference(runs, rows.get(REFERENCE)) for runs in rows.values()],
            "reset at each segment": [_range(_per_byte(runs, "bits_reset"), ".3f") for runs in rows.values()],
        }

    def score(self, run: Mapping[str, Any]) -> float:
        return _per_byte([run], "bits")[0]


class Recall:
    """How many facts memory carries, and what helps."""

    name = "recall"
    config = "text/recall_facts"
    title = "How many facts are recalled"
    about = """Recall in % at the last level of the curriculum that a run reached, mean and range over the seeds; chance
is 3.1 %. The budget is [recall_facts.toml](../../configs/text/recall_facts.toml): at most 3,000 steps."""
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
    label = "recall at the last level reached, %"
    limits: tuple[float, float] | None = (-2, 102)
    _REACHED = ("steps", "facts", "segments")

    def summarize(self, run: Path, last: Mapping[str, Any]) -> dict[str, Any]:
        return {name: last[name] for name in ("segments", "facts", "recall", "wiped")}

    def columns(self, rows: Runs) -> dict[str, list[str]]:
        return {
            **{key: [_range([run[key] for run in runs], ",") for runs in rows.values()] for key in self._REACHED},
            "recalled, %": [mean_and_range([self.score(run) for run in runs]) for runs in rows.values()],
            "over 32 segments, %": [_recalled([run["recall"].get("32") for run in runs]) for runs in rows.values()],
            "memory wiped, %": [_recalled([run["wiped"] for run in runs]) for runs in rows.values()],
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


def _recalled(counts: Sequence[Mapping[str, int] | None]) -> str:
    """Mean and range of what was counted; nothing where that was not in all runs."""
    known = [_percent(count) for count in counts if count is not None]
    return mean_and_range(known) if len(known) == len(counts) else ""


def _range(values: Sequence[float], form: str) -> str:
    """Mean and range, each in a form; of one number the number."""
    mean, low, high = (format(x, form) for x in (type(values[0])(statistics.mean(values)), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} - {high})"


def _per_byte(runs: Sequence[Mapping[str, Any]], kind: str) -> list[float]:
    return [sum(run["documents"][kind]) / sum(run["documents"]["bytes"]) for run in runs]


def _difference(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]] | None) -> str:
    """Bits per byte more than the reference, with the interval over documents; nothing of the reference itself."""
    if reference is None or runs is reference:
        return ""
    bits, of_reference = (np.mean([run["documents"]["bits"] for run in each], axis=0) for each in (runs, reference))
    bytes_D = np.array(runs[0]["documents"]["bytes"], np.float64)
    low, high = ratio_interval(bits - of_reference, bytes_D)
    return f"{(bits - of_reference).sum() / bytes_D.sum():+.3f} ({low:+.3f} to {high:+.3f})"
