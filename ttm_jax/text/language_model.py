"""A trained language model: load a checkpoint, write on, measure text."""

import hashlib
import heapq
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttm_jax.files import naming
from ttm_jax.text import sampling
from ttm_jax.text.config import Config
from ttm_jax.text.model import Place, TransformerLanguageModel
from ttm_jax.text.objective import make_objective
from ttm_jax.text.streams import Streams
from ttm_jax.text.task import BITS
from ttm_jax.text.tokenizer import Tokenizer, as_text, drawable, make_tokenizer
from ttm_jax.training.checkpoint import load_meta, load_params
from ttm_jax.training.checkpoint_files import CheckpointError, find_checkpoint
from ttm_jax.training.config import ConfigError
from ttm_jax.training.task import Arrays

PIECE = 16  # tokens that are drawn at a time
WINDOW = 16  # segments that are computed at a time
STREAMS = 16  # documents that are measured at a time


@dataclass(frozen=True)
class LanguageModel:
    """A trained model with its parameters.

        model = ttm_jax.load("runs/text-quick")
        print("".join(model.generate("def ")))
        logits, place = model.extend(tokens_BxS)         # then model.extend(more_tokens, place), without end

    Attributes:
        model: the linen module.
        variables: what `model.apply` takes.
        config: the config that it was trained with.
        path: the checkpoint that it came from.
        tokenizer: text as its tokens.
        corpus: the digest of what it was trained on (`Corpus.digest`); None where that was no corpus.
    """

    model: TransformerLanguageModel
    variables: dict
    config: Config
    path: Path
    tokenizer: Tokenizer
    corpus: str | None = None

    def extend(self, tokens_BxS: np.ndarray, place: Place | None = None) -> tuple[np.ndarray, Place]:
        """Read tokens that follow those before; what is kept does not grow with their number.

        Args:
            tokens_BxS: int [B, S], S >= 1; B is the same in every call.
            place: as an earlier call returned it; the beginning of a document where None.

        Returns the logits of the next token after each, [B, S, V], and the place.
        """
        found = [*self.pieces(tokens_BxS, place)]
        after = found[-1][2]
        assert after is not None
        return np.concatenate([np.asarray(logits)[:, :number] for logits, number, _ in found], axis=1), after

    def pieces(
        self, tokens_BxS: np.ndarray, place: Place | None = None
    ) -> Iterator[tuple[jax.Array, int, Place | None]]:
        """Read as `extend` does, in pieces of a few shapes, each of which is compiled once.

        Gives for each piece logits [B, n, V], of which the first `number` are valid, that number, and the place; it is
        None where more is to come.
        """
        model, variables, N = self.model, self.variables, self.config.model.segment
        tokens_BxS = np.asarray(tokens_BxS, np.int32)
        B, S = tokens_BxS.shape
        state, done = (model.initial_state(B), 0) if place is None else (place.state, 0)

        def segment(number: int) -> np.ndarray:
            padding = ((0, 0), (0, N - number))
            return np.pad(tokens_BxS[:, done : done + number], padding, constant_values=self.tokenizer.pad)

        # 1. fill the segment that has begun
        if place is not None and (filled := int(place.tokens)):
            if number := min(N - filled, S):
                logits, place = sampling.feed(model, variables, segment(number), number, place)
                yield logits, number, place
                done = number
            if done < S:
                state = sampling.close_segment(model, variables, place).state
        # 2. whole segments, several at a time
        while S - done >= N:
            T = WINDOW if S - done >= WINDOW * N else 1
            segments = tokens_BxS[:, done : done + T * N].reshape(B, T, N)
            logits, state = sampling.feed_segments(model, variables, segments, state)
            done += T * N
            yield logits, T * N, None if done < S else sampling.begin_segment(model, variables, state)
        # 3. the beginning of the next
        if done < S:
            logits, place = sampling.open_segment(model, variables, segment(S - done), S - done, state)
            yield logits, S - done, place

    def writer(self, batch_size: int = 1) -> "Writer":
        """Give a writer at the beginning of a document.

        Raises:
            ValueError: if the model was trained on other tokens than text.
        """
        self._require_text()
        return Writer(self, batch_size)

    def _require_text(self) -> None:
        if self.config.data.kind == "recall":
            raise ValueError(f"{self.path.name} was trained to recall facts, not on text")

    def generate(
        self,
        prompt: str | bytes = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.9,
        seed: int = 0,
    ) -> Iterator[str]:
        """Write on from a prompt; give the text in pieces as they come. See `ttm_jax.text.sampling.sample`."""
        writer = self.writer()
        writer.read(prompt)
        return as_text(pieces[0] for pieces in writer.write(max_new_tokens, temperature, top_k, top_p, seed))

    def bits_per_byte(self, data: str | bytes) -> float:
        """Measure a text as one document, memory carried through it.

        Raises:
            ValueError: if it is empty.
        """
        data = _as_bytes(data)
        if not data:
            raise ValueError("there are no bits per byte of an empty text")
        (bits,) = self.token_bits([data])
        return float(bits.sum()) / len(data)

    def token_bits(self, documents: Sequence[bytes], history: int | None = None) -> list[np.ndarray]:
        """Measure documents, each from its beginning: the bits of each of its tokens, float64 [n].

        Args:
            documents: not empty ones.
            history: of how many segments before its own a token knows; of all where None.
        """
        self._require_text()
        found: list[list[np.ndarray]] = [[] for _ in documents]
        state = None
        batches = self._windows(documents, history) if history else self._streams(documents, reset=history == 0)
        for arrays, document_BxT in batches:
            if state is None or history:
                state = self.model.initial_state(len(document_BxT))
            nats_BxTxN, state = sampling.score_segments(self.model, self.variables, arrays, state)
            bits_BxTxN = BITS * np.asarray(nats_BxTxN, np.float64)
            for b, t in np.argwhere(document_BxT >= 0):
                found[document_BxT[b, t]].append(bits_BxTxN[b, t])
        lengths = [len(self.tokenizer.encode(document)) for document in documents]
        return [np.concatenate(bits)[:length] for bits, length in zip(found, lengths, strict=True)]

    def token_lengths(self, document: bytes) -> np.ndarray:
        """Count the bytes of each token of a document, int32 [n]."""
        return self.tokenizer.num_bytes[self.tokenizer.encode(document)]

    def byte_bits(self, documents: Sequence[bytes], history: int | None = None) -> list[np.ndarray]:
        """Measure as `token_bits` does, by byte: the bits of a token are divided equally between its bytes."""
        found = []
        for document, bits in zip(documents, self.token_bits(documents, history), strict=True):
            num_bytes = self.token_lengths(document)
            found.append(np.repeat(bits / num_bytes, num_bytes))
        return found

    def _streams(self, documents: Sequence[bytes], reset: bool) -> Iterator[tuple[Arrays, np.ndarray]]:
        """Batches of several documents at a time, each whole in a row; and the document of each segment."""
        lengths = [*map(len, documents)]
        full = sum(lengths) // max(lengths)  # more rows would end long before that of the longest
        rows: list[list[int]] = [[] for _ in range(min(STREAMS, full))]
        shortest = [(0, row) for row in range(len(rows))]
        for i in sorted(range(len(documents)), key=lambda i: -len(documents[i])):
            length, row = heapq.heappop(shortest)
            rows[row].append(i)
            heapq.heappush(shortest, (length + len(documents[i]), row))
        streams = [self._stream([documents[i] for i in row], WINDOW) for row in rows]
        for step in range(max(stream.steps_per_epoch for stream in streams)):
            parts = []
            for row, stream in zip(rows, streams, strict=True):
                part = stream.batch(min(step, stream.steps_per_epoch - 1))
                there = (part["document"] >= 0) & (step < stream.steps_per_epoch)
                part["document"] = np.where(there, np.array(row)[part["document"]], -1)
                parts.append(part)
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            arrays["start"] |= reset
            yield arrays, arrays.pop("document")

    def _windows(self, documents: Sequence[bytes], history: int) -> Iterator[tuple[Arrays, np.ndarray]]:
        """Batches of segments, each with so many of those before it; the document of the last, -1 of the others."""
        T, windows = history + 1, []
        batch_size = max(1, STREAMS * WINDOW // T)
        for i, document in enumerate(documents):
            num_tokens = len(self.tokenizer.encode(document))
            whole = self._stream([document], -(-num_tokens // self.config.model.segment)).batch(0)
            for s in range(whole["tokens"].shape[1]):
                first, own = max(0, s - history), min(s, history)
                padding = (0, T - (own + 1))
                part = {
                    name: np.pad(whole[name][0, first : s + 1], (padding, (0, 0)))
                    for name in ("tokens", "targets", "weights")
                }
                part["start"], part["document"] = np.arange(T) == 0, np.where(np.arange(T) == own, i, -1)
                windows.append(part)
                if len(windows) == batch_size:
                    yield self._stacked(windows)
                    windows = []
        if windows:
            filling = {**windows[0], "document": np.full(T, -1)}
            yield self._stacked(windows + [filling] * (batch_size - len(windows)))

    def _stacked(self, windows: Sequence[Arrays]) -> tuple[Arrays, np.ndarray]:
        arrays = {name: np.stack([window[name] for window in windows]) for name in windows[0]}
        return arrays, arrays.pop("document")

    def _stream(self, documents: Sequence[bytes], segments: int) -> Streams:
        tokens = [self.tokenizer.encode(document) for document in documents]
        return Streams(tokens, 1, segments, self.config.model.segment, self.tokenizer.bos, self.tokenizer.pad)


class Writer:
    """Reads and writes on, from the beginning of a document; what it holds does not grow.

    Attributes:
        batch_size: B, texts that are written beside each other from the same prompt.
    """

    def __init__(self, model: LanguageModel, batch_size: int = 1):
        self._model, self.batch_size = model, batch_size
        self._drawn = 0
        self._logits_BxV: Any = None  # of the next token; nothing has been read yet
        self._place: Any = None

    def read(self, text: str | bytes) -> None:
        """Read what comes next; nothing where it is empty."""
        self._read(self._model.tokenizer.encode(_as_bytes(text)))

    def _read(self, tokens: np.ndarray) -> None:
        if self._place is None:
            tokens = np.concatenate([[self._model.tokenizer.bos], tokens])
        if len(tokens):
            rows = np.broadcast_to(tokens, (self.batch_size, len(tokens)))
            for logits, number, place in self._model.pieces(rows, self._place):
                self._logits_BxV, self._place = sampling.last(logits, number), place

    def _begin(self) -> None:
        """Read what a document begins with, where nothing has been read yet."""
        if self._place is None:
            self._read(np.zeros(0, np.int32))

    def write(
        self, number: int, temperature: float = 0.8, top_k: int = 40, top_p: float = 0.9, seed: int = 0
    ) -> Iterator[list[bytes]]:
        """Write so many tokens; give those of each text in pieces as they come.

        Raises:
            ValueError: if one of the numbers cannot be.
        """
        if number < 0 or top_k < 0:
            raise ValueError(f"numbers must not be negative, got {number} tokens to write and top_k {top_k}")
        if not (temperature >= 0 and 0 <= top_p <= 1):
            raise ValueError(f"temperature must be 0 or more and top_p from 0 to 1, got {temperature} and {top_p}")
        return self._write(number, temperature, top_k, None if top_p == 1 else top_p, jax.random.key(seed))

    def _write(
        self, number: int, temperature: float, top_k: int, top_p: float | None, key: jax.Array
    ) -> Iterator[list[bytes]]:
        model = self._model
        allowed_V = drawable(model.tokenizer, model.model.vocab_size)
        self._begin()
        for piece in _powers(number, largest=PIECE):
            tokens_BxS, self._logits_BxV, self._place = sampling.draw(
                model.model,
                model.variables,
                self._logits_BxV,
                self._place,
                allowed_V,
                key,
                self._drawn,
                piece,
                temperature,
                top_k,
                top_p,
            )
            self._drawn += piece
            yield [model.tokenizer.decode(row) for row in np.asarray(tokens_BxS)]

    def save(self, path: str | Path) -> None:
        """Write all that the writer holds to a file, from which `load` goes on identically.

        Raises:
            FileError: naming the file, if it cannot be written.
        """
        self._begin()
        arrays: dict[str, Any] = {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in self._leaves()}
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp")
        with naming(path):
            with temporary.open("wb") as file:
                np.savez(file, model=_digest(self._model), drawn=self._drawn, **arrays)
            temporary.replace(path)

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            CheckpointError: naming the file, if it cannot be read or is of another model.
        """
        try:
            with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                saved = {name: file[name] for name in file.files}
        except OSError as error:
            raise CheckpointError(f"state {path}: cannot be read: {error.strerror or 'not a state'}") from None
        except (ValueError, TypeError, zipfile.BadZipFile, EOFError, AttributeError):
            raise CheckpointError(f"state {path}: not the state of a language model, or damaged") from None
        if saved.pop("model", None) != _digest(self._model):
            raise CheckpointError(
                f"state {path}: of another model; it goes on with the checkpoint that it was saved with"
            )
        self._drawn = int(saved.pop("drawn"))
        self._begin()  # for the shapes
        leaves = [_typed(saved[jax.tree_util.keystr(name)], leaf.dtype) for name, leaf in self._leaves()]
        treedef = jax.tree.structure((self._logits_BxV, self._place))
        self._logits_BxV, self._place = jax.tree.unflatten(treedef, leaves)
        self.batch_size = len(self._logits_BxV)

    def _leaves(self) -> list[Any]:
        return jax.tree_util.tree_leaves_with_path((self._logits_BxV, self._place))


def load(path: str | Path) -> LanguageModel:
    """Load the language model of a checkpoint, or of a run folder (its best checkpoint, or else its latest).

    Raises:
        CheckpointError: naming the path and what is wrong with it.
    """
    path = find_checkpoint(path)
    config, meta = load_meta(path)
    try:
        objective = make_objective(config)
        task = meta["progress"]["task"]
        tokenizer = make_tokenizer(task.get("tokenizer"))
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    return LanguageModel(
        objective.model, {"params": load_params(path, objective)}, config, path, tokenizer, task.get("corpus")
    )


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _powers(number: int, largest: int) -> Iterator[int]:
    """Split a number into powers of two, so that few lengths are compiled."""
    while number:
        part = min(largest, 1 << (number.bit_length() - 1))
        yield part
        number -= part


def _typed(saved: np.ndarray, dtype: Any) -> jax.Array:
    """An array of a file, which knows no bfloat16."""
    return jnp.asarray(saved.view(dtype) if saved.dtype.kind == "V" else saved)


def _digest(model: LanguageModel) -> str:
    total = hashlib.sha256(repr(model.config.model).encode())
    for leaf in jax.tree.leaves(model.variables):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()
