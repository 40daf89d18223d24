"""Text as a task of the trainer: streams of documents, bits per byte of held-out ones. NumPy only."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ttm_jax.statistics import ratio_interval
from ttm_jax.text.config import Config
from ttm_jax.text.corpus import Document, evenly, read_corpus
from ttm_jax.text.recall import RecallTask
from ttm_jax.text.streams import Streams
from ttm_jax.text.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, drawable
from ttm_jax.training.config import ConfigError
from ttm_jax.training.task import Arrays, Batch, Curve, Evaluation, Example, Predict, Record, Task, Verdict

RECORD_EVERY = 25  # steps
BITS = 1 / math.log(2)  # of a nat


class TextTask:
    """See `ttm_jax.training.task.Task`.

    Attributes:
        corpus: the documents.
        streams: those to train on.
    """

    curves: ClassVar[Sequence[Curve]] = (
        Curve(
            "bits per byte, held out",
            "eval",
            lambda record: {"memory carried": record["bits_per_byte"], "reset": record["bits_per_byte_reset"]},
            "history",
        ),
        Curve("bits per byte, training", "train", lambda record: {"training": record["bits_per_byte"]}, ""),
    )

    def __init__(self, config: Config):
        data = config.data
        self.batch_size = data.batch_size
        self.corpus = read_corpus(data.path, data.patterns, data.held_out)
        texts = [document.data for document in self.corpus.training]
        bpe = data.tokenizer == "bpe"
        tokenizer: Tokenizer = BPETokenizer.train(texts, data.vocab_size) if bpe else ByteTokenizer()
        self._config, self._tokenizer = config, tokenizer
        self.streams = Streams(
            [tokenizer.encode(text) for text in texts],
            data.batch_size,
            data.segments,
            config.model.segment,
            tokenizer.bos,
            tokenizer.pad,
            config.train.seed,
        )
        self._nats, self._bytes, self._steps, self._best, self._evaluations = 0.0, 0.0, 0, math.inf, 0

    def batch(self, step: int) -> Batch:
        arrays = self.streams.batch(step)
        return Batch({name: arrays[name] for name in ("tokens", "targets", "weights", "start")})

    def must_read(self, step: int) -> bool:
        return False

    def record(self, batch: Batch, metrics: Mapping[str, Any]) -> Record | None:
        self._nats += float(np.sum(metrics["nats"]))
        self._bytes += float(self._count_bytes(batch.arrays).sum(dtype=np.float64))
        self._steps += 1
        if self._steps < RECORD_EVERY:
            return None
        bits = BITS * self._nats / self._bytes
        self._nats, self._bytes, self._steps = 0.0, 0.0, 0
        return {"bits_per_byte": bits}

    def evaluate(self, predict: Predict) -> Evaluation:
        """Measure bits per byte of the beginnings of held-out documents, memory carried and reset; and write on."""
        documents = self._held_out()
        arrays = self._rows(documents)
        carried_D = _bits(predict(arrays)["nats"])
        reset_D = _bits(predict({**arrays, "start": np.ones_like(arrays["start"])})["nats"])
        bytes_D = self._count_bytes(arrays).sum(axis=(1, 2, 3), dtype=np.float64)
        total = float(bytes_D.sum())
        record = {
            "bits_per_byte": float(carried_D.sum()) / total,
            "bits_per_byte_reset": float(reset_D.sum()) / total,
            "worth_interval_95": list(ratio_interval(reset_D - carried_D, bytes_D)),
            "bytes": int(total),
            "documents": len(documents),
        }
        return Evaluation(record, -record["bits_per_byte"], self._samples(predict, documents))

    def _count_bytes(self, arrays: Arrays) -> np.ndarray:
        """Count the bytes of each target."""
        return self._tokenizer.num_bytes[arrays["targets"]] * arrays["weights"]

    def _held_out(self) -> list[Document]:
        """Give the documents of an evaluation, evenly from all that are held out."""
        return evenly(self.corpus.held_out, self._config.train.eval_documents)

    def _rows(self, documents: Sequence[Document]) -> Arrays:
        """Make the arrays of an evaluation: a row [W, T, N] for each document."""
        T, N = self._config.data.segments, self._config.model.segment
        most = -(-self._config.train.eval_segments // T) * T
        texts = [self._tokenizer.encode(document.data)[: most * N] for document in documents]
        segments = -(-max(map(len, texts)) // (N * T)) * T
        rows = [Streams([text], 1, segments, N, self._tokenizer.bos, self._tokenizer.pad).batch(0) for text in texts]
        return {
            name: np.concatenate([row[name] for row in rows]).reshape(len(rows), -1, T, *rows[0][name].shape[2:])
            for name in ("tokens", "targets", "weights", "start")
        }

    def _samples(self, predict: Predict, documents: Sequence[Document]) -> list[Example]:
        """Let the model write on from the beginnings of two documents, other ones at each evaluation."""
        N, tokenizer = self._config.model.segment, self._tokenizer
        first = 2 * self._evaluations
        chosen = [documents[(first + i) % len(documents)] for i in range(2)]
        prompts = [np.append(tokenizer.bos, tokenizer.encode(document.data))[:N] for document in chosen]
        number = min(map(len, prompts))
        prompts = [prompt[:number] for prompt in prompts]
        padded = np.pad(np.stack(prompts).astype(np.int32), ((0, 0), (0, N - number)), constant_values=tokenizer.pad)
        numbers, seeds = np.full(2, number, np.int32), np.full(2, self._config.train.seed, np.uint32)
        data = self._config.data
        allowed_V = drawable(tokenizer, data.vocab_size if data.tokenizer == "bpe" else tokenizer.vocab_size)
        asked = {"prompt": padded, "number": numbers, "allowed": np.stack(2 * [allowed_V]), "seed": seeds}
        found = predict(asked)["sample"]
        texts = [tokenizer.decode(tokens).decode("utf-8", "replace") for tokens in (*prompts, *found)]
        return [Example(repr(a)[1:-1], f"→ {b!r}") for a, b in zip(texts[:2], texts[2:], strict=True)]

    def end_epoch(self, evaluation: Evaluation | None) -> Verdict:
        if evaluation is None:
            return Verdict()
        self._evaluations += 1
        improved, self._best = -evaluation.score < self._best, min(-evaluation.score, self._best)
        return Verdict(improved)

    def to_dict(self) -> dict[str, Any]:
        return {
            "corpus": self.corpus.digest,
            "tokenizer": self._tokenizer.to_json(),
            "nats": self._nats,
            "bytes": self._bytes,
            "steps": self._steps,
            "best": None if math.isinf(self._best) else self._best,
            "evaluations": self._evaluations,
        }

    def load_dict(self, values: Mapping[str, Any]) -> None:
        if values["corpus"] != self.corpus.digest:
            raise ConfigError(
                f"data.path {self._config.data.path}: its files are not those that the run began with; "
                "begin a new run, or bring them back"
            )
        if values["tokenizer"] != self._tokenizer.to_json():
            raise ConfigError("data.tokenizer: it learnt another vocabulary than the run began with; begin a new run")
        self._nats, self._bytes, self._steps = (values[name] for name in ("nats", "bytes", "steps"))
        self._best = math.inf if values["best"] is None else values["best"]
        self._evaluations = values["evaluations"]

    def describe_training(self, record: Record) -> str:
        return f"{record['bits_per_byte']:.3f} bits/byte"

    def describe_evaluation(self, record: Record) -> str:
        worth = record["bits_per_byte_reset"] - record["bits_per_byte"]
        low, high = record["worth_interval_95"]
        return (
            f"{record['bits_per_byte']:.3f} bits/byte on {record['bytes']:,} held-out bytes; {worth:+.3f} "
            f"({low:+.3f} to {high:+.3f}) where history is reset at each segment"
        )

    def table(self, evaluations: Sequence[Record]) -> None:
        return None


def make_task(config: Config) -> Task:
    """Make the task of a config."""
    return RecallTask(config) if config.data.kind == "recall" else TextTask(config)


def _bits(nats_DxWxTxN: np.ndarray) -> np.ndarray:
    """Bits of each document."""
    return BITS * nats_DxWxTxN.sum(axis=(1, 2, 3), dtype=np.float64)
