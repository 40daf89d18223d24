"""The command that measures a language model on held-out text: bits per byte, and what its history is worth."""

import bz2
import dataclasses
import gzip
import json
import lzma
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.hardware.allocator import keep_freed_memory
from ttm_jax.statistics import ratio_interval
from ttm_jax.text.corpus import Document, evenly, read_corpus, read_documents
from ttm_jax.text.language_model import LanguageModel, load
from ttm_jax.text.objective import make_objective
from ttm_jax.text.recall import RecallTask
from ttm_jax.training.checkpoint_files import CheckpointError
from ttm_jax.training.config import ConfigError
from ttm_jax.training.rows import predict_rows
from ttm_jax.training.run_folder import provenance
from ttm_jax.training.step import predict_step
from ttm_jax.training.task import Arrays

COMPRESSORS = {
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}
SEQUENCES = 1000  # of a recall
REACHES = (0, 1, 2, 4)
WORD = re.compile(rb"[A-Za-z_]\w{3,}")


def make_parser() -> Parser:
    """Make the command line."""
    parser = Parser(
        prog="python -m ttm_jax.evaluate",
        description="Bits per byte of a language model on held-out documents, each read from its beginning.",
        epilog="example: python -m ttm_jax.evaluate runs/text-quick --reach --documents 20",
    )
    parser.add_argument("checkpoint", help="a checkpoint, a run folder (its best one), or the name of a shipped one")
    parser.add_argument(
        "--path", help="a file or folder to measure, all of it (default: what is held out of the corpus)"
    )
    parser.add_argument(
        "--documents",
        type=positive_int,
        help="how many, evenly from all (default: all); of recall, how many sequences (default: 1000)",
    )
    parser.add_argument("--bytes", type=positive_int, metavar="N", help="of each document the first N (default: all)")
    parser.add_argument("--reach", action="store_true", help=f"cut history to {REACHES} segments as well")
    parser.add_argument("--repeats", action="store_true", help="words that come again from beyond the window, apart")
    parser.add_argument("--json", action="store_true", help="one JSON object with all counts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        model = load(args.checkpoint)
        if model.config.data.kind == "recall":
            if args.path or args.bytes or args.reach or args.repeats:
                return fail(parser, f"{args.checkpoint} recalls facts; it takes --documents and --json alone")
            found, text = measure_recall(model, args.documents or SEQUENCES)
        else:
            about, documents = _documents(model, args.path)
            documents = [Document(d.name, d.data[: args.bytes]) for d in evenly(documents, args.documents)]
            found = {**about, **measure(model, documents, REACHES if args.reach else (), args.repeats)}
            text = describe(found)
    except (CheckpointError, ConfigError) as error:
        return fail(parser, error)
    if args.json:
        words = [*(sys.argv[1:] if argv is None else argv)]
        command = " ".join(["python -m ttm_jax.evaluate", *words])
        print(json.dumps({**found, "provenance": {**provenance(), "command": command}}, indent=1))
    else:
        print(text)
    return 0


def measure(
    model: LanguageModel, documents: Sequence[Document], reaches: Sequence[int] = (), repeats: bool = False
) -> dict[str, Any]:
    """Measure documents with all their history, with none beyond the segment, and with what else is asked for.

    Args:
        model: the model.
        documents: not empty ones.
        reaches: numbers of segments that history is cut to.
        repeats: measure words that come again from beyond the windows of all layers apart, with all history and with
            history cut to the segments that the windows reach.
    """
    texts = [document.data for document in documents]
    bytes_D = np.array([len(text) for text in texts], np.float64)
    carried = model.byte_bits(texts)
    reset = model.byte_bits(texts, history=0)
    found: dict[str, Any] = {
        "documents": len(texts),
        "bytes": int(bytes_D.sum()),
        "carried": _mean(carried, bytes_D),
        "reset": _mean(reset, bytes_D),
        "worth": _difference(reset, carried, bytes_D),
        "compressors": {
            name: 8 * sum(len(compress(text)) for text in texts) / bytes_D.sum()
            for name, compress in COMPRESSORS.items()
        },
    }
    if reaches:
        by_reach = {k: reset if k == 0 else model.byte_bits(texts, history=k) for k in reaches}
        found["reach"] = {str(k): _difference(bits, carried, bytes_D) for k, bits in by_reach.items()}
    if repeats:
        layers, N = model.config.model.decoder_layers, model.config.model.segment
        places = [np.repeat(np.arange(len(n)), n) for n in map(model.token_lengths, texts)]
        far = [far_repeats(text, place, layers * N) for text, place in zip(texts, places, strict=True)]
        window = model.byte_bits(texts, history=layers)
        found["repeats"] = {
            name: {"bytes": int(total.sum())}
            | {kind: _mean(_only(bits, mask), total) for kind, bits in (("carried", carried), ("window", window))}
            | {"worth": _difference(_only(window, mask), _only(carried, mask), total)}
            for name, mask in (("repeats", far), ("others", [~far_n for far_n in far]))
            if (total := np.array([float(m.sum()) for m in mask])).sum()
        }
    return found


def far_repeats(text: bytes, places: np.ndarray, distance: int) -> np.ndarray:
    """Say which bytes, bool [n], are of a word whose last end is further back than so many tokens.

    Args:
        text: n bytes.
        places: the token of each, int [n].
        distance: in tokens.
    """
    found, last = np.zeros(len(text), bool), {}
    for match in WORD.finditer(text):
        word, (begin, end) = match.group(), match.span()
        if word in last and places[begin] - last[word] > distance:
            found[begin:end] = True
        last[word] = places[end - 1]
    return found


def describe(found: dict[str, Any]) -> str:
    """Give the findings as lines."""
    lines = [f"{found['documents']} documents, {found['bytes']:,} bytes, of {found['corpus']}"]
    if "note" in found:
        lines.append(found["note"])

    def row(name: str, value: dict[str, Any], sign: str = "") -> str:
        interval = value["interval_95"]
        told = "" if interval is None else "  ({:{sign}.3f} to {:{sign}.3f})".format(*interval, sign=sign)
        return f"{name:34} {value['bits_per_byte']:{sign}.3f}{told}"

    lines.append("bits per byte")
    lines.append(row("  history carried", found["carried"]))
    lines.append(row("  reset at each segment", found["reset"]))
    lines.append(row("  what history is worth", found["worth"], "+"))
    lines += [f"  {name:32} {bits:.3f}" for name, bits in found["compressors"].items()]
    if "reach" in found:
        lines.append("lost where history is cut to")
        lines += [row(f"  {k} segments", value, "+") for k, value in found["reach"].items()]
    for name, value in found.get("repeats", {}).items():
        what = "words from beyond the window" if name == "repeats" else "all other bytes"
        lines.append(f"{what}, {value['bytes']:,} bytes")
        lines += [row("  history carried", value["carried"]), row("  cut to the windows", value["window"])]
        lines.append(row("  what memory is worth", value["worth"], "+"))
    return "\n".join(lines)


def measure_recall(model: LanguageModel, sequences: int) -> tuple[dict[str, Any], str]:
    """Evaluate the last level, on sequences that training never draws; give the record, and words about it."""
    config = model.config
    config = dataclasses.replace(
        config,
        recall=dataclasses.replace(config.recall, eval_sequences=sequences),
        train=dataclasses.replace(config.train, seed=config.train.seed + 1),
    )
    objective, task = make_objective(config), RecallTask.at_the_end(config)

    def predict(arrays: Arrays) -> Arrays:
        compute = partial(predict_step, objective, model.variables["params"])
        return predict_rows(compute, arrays, config.train.eval_batch_size, jax.device_get)

    record = task.evaluate(predict).record
    return record, task.describe_evaluation(record)


def _documents(model: LanguageModel, path: str | None) -> tuple[dict[str, str], Sequence[Document]]:
    """What is to be said about the documents that are measured, and them."""
    data = model.config.data
    if path is not None:
        name, documents = read_documents(path, data.patterns)
        return {"corpus": name}, documents
    corpus = read_corpus(data.path, data.patterns, data.held_out)
    about = {"corpus": corpus.name, "digest": corpus.digest}
    if corpus.digest != model.corpus:
        about["note"] = "this is not the corpus that it was trained on: some of this text may have been trained"
    return about, corpus.held_out


def _only(bits: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [of_document[mask] for of_document, mask in zip(bits, masks, strict=True)]


def _mean(bits: Sequence[np.ndarray], bytes_D: np.ndarray) -> dict[str, Any]:
    """Bits per byte over all documents that have such bytes, with the interval over them, of two at least."""
    bits_D = np.array([of_document.sum() for of_document in bits])[bytes_D > 0]
    bytes_D = bytes_D[bytes_D > 0]
    interval = list(ratio_interval(bits_D, bytes_D)) if len(bits_D) > 1 else None
    return {"bits_per_byte": bits_D.sum() / bytes_D.sum(), "interval_95": interval}


def _difference(more: Sequence[np.ndarray], less: Sequence[np.ndarray], bytes_D: np.ndarray) -> dict[str, Any]:
    """As `_mean`, of the differences, paired by document."""
    return _mean([a - b for a, b in zip(more, less, strict=True)], bytes_D)
