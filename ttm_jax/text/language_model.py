"""A trained language model: load a checkpoint, write on, measure text."""

import hashlib
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
from ttm_jax.text.tokenizer import Tokenizer, as_text, make_tokenizer
from ttm_jax.training.checkpoint import load_meta, load_params
from ttm_jax.training.checkpoint_files import CheckpointError, find_checkpoint
from ttm_jax.training.config import ConfigError

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
    """

    model: TransformerLanguageModel
    variables: dict
    config: Config
    path: Path
    tokenizer: Tokenizer

    def extend(self, tokens_BxS: np.ndarray, place: Place | None = None) -> tuple[jax.Array, Place]:
        """Read tokens that follow those before; what is kept does not grow with their number.

        Args:
            tokens_BxS: int [B, S], S >= 1; B is the same in every call.
            place: as an earlier call returned it; the beginning of a document where None.

        Returns the logits of the next token after each, [B, S, V], and the place.
        """
        N, (B, S) = self.config.model.segment, tokens_BxS.shape
        rest, found = np.asarray(tokens_BxS, np.int32), []

        def take(number: int) -> np.ndarray:
            nonlocal rest
            taken, rest = rest[:, :number], rest[:, number:]
            return taken

        # 1. fill the segment that has begun, in pieces of few lengths, each of which is compiled once
        state = self.model.initial_state(B) if place is None else place.state
        if place is not None and (filled := int(place.tokens)):
            for number in _powers(min(N - filled, S), largest=PIECE):
                logits, place = sampling.feed(self.model, self.variables, take(number), place)
                found.append(logits)
            if rest.shape[1]:
                place = sampling.close_segment(self.model, self.variables, place)
                state = place.state
        # 2. whole segments, several at a time
        for number in _powers(rest.shape[1] // N, largest=WINDOW):
            segments = take(number * N).reshape(B, number, N)
            logits, state = sampling.feed_segments(self.model, self.variables, segments, state)
            found.append(logits.reshape(B, number * N, -1))
            place = None
        # 3. the beginning of the next
        if rest.shape[1]:
            number = rest.shape[1]
            padded = np.pad(rest, ((0, 0), (0, N - number)), constant_values=self.tokenizer.pad)
            logits, place = sampling.open_segment(self.model, self.variables, padded, number, state)
            found.append(logits[:, :number])
        elif place is None:
            place = sampling.begin_segment(self.model, self.variables, state)
        return jnp.concatenate(found, axis=1), place

    def writer(self, batch_size: int = 1) -> "Writer":
        """Give a writer at the beginning of a document."""
        return Writer(self, batch_size)

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
        found: list[list[np.ndarray]] = [[] for _ in documents]
        state = None
        batches = self._streams(documents) if history is None else self._windows(documents, history)
        for arrays, document_BxT in batches:
            if state is None or history is not None:
                state = self.model.initial_state(len(document_BxT))
            nats_BxTxN, state = sampling.score_segments(self.model, self.variables, arrays, state)
            bits_BxTxN = BITS * np.asarray(nats_BxTxN, np.float64)
            for b, t in np.argwhere(document_BxT >= 0):
                found[document_BxT[b, t]].append(bits_BxTxN[b, t])
        lengths = [len(self.tokenizer.encode(document)) for document in documents]
        return [np.concatenate(bits)[:length] for bits, length in zip(found, lengths, strict=True)]

    def byte_bits(self, documents: Sequence[bytes], history: int | None = None) -> list[np.ndarray]:
        """Measure as `token_bits` does, by byte: the bits of a token are divided equally between its bytes."""
        found = []
        for document, bits in zip(documents, self.token_bits(documents, history), strict=True):
            num_bytes = self.tokenizer.num_bytes[self.tokenizer.encode(document)]
            found.append(np.repeat(bits / num_bytes, num_bytes))
        return found

    def _streams(self, documents: Sequence[bytes]) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Batches of several documents at a time, each whole in a row; and the document of each segment."""
        order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
        rows: list[list[int]] = [[] for _ in range(min(STREAMS, len(order)))]
        for i in order:  # the next longest to the shortest row
            min(rows, key=lambda row: sum(len(documents[j]) for j in row)).append(i)
        streams = [self._stream([documents[i] for i in row], WINDOW) for row in rows]
        for step in range(max(stream.steps_per_epoch for stream in streams)):
            parts = []
            for row, stream in zip(rows, streams, strict=True):
                part = stream.batch(min(step, stream.steps_per_epoch - 1))
                if step >= stream.steps_per_epoch:
                    part = {**part, "weights": np.zeros_like(part["weights"]), "document": -np.ones((1, WINDOW), int)}
                known = part["document"]
                part["document"] = np.where(known >= 0, np.array(row)[known], -1)
                parts.append(part)
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            yield arrays, arrays.pop("document")

    def _windows(self, documents: Sequence[bytes], history: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Batches of segments, each with so many of those before it, whose own targets count for nothing."""
        T, windows, owners = history + 1, [], []
        for i, document in enumerate(documents):
            whole = self._stream([document], -(-len(document) // self.config.model.segment)).batch(0)
            for s in range(whole["tokens"].shape[1]):
                first, own = max(0, s - history), min(s, history)
                part = {name: np.roll(whole[name][0], -first, axis=0)[:T] for name in ("tokens", "targets", "weights")}
                part = {name: np.resize(array, (T, *array.shape[1:])) for name, array in part.items()}
                part["weights"] = part["weights"] * (np.arange(T) == own)[:, None]
                windows.append({**part, "start": np.arange(T) == 0})
                owners.append(np.where(np.arange(T) == own, i, -1))
        for first in range(0, len(windows), STREAMS):
            chosen = [*range(first, min(first + STREAMS, len(windows)))]
            filled = chosen + chosen[:1] * (STREAMS - len(chosen))
            arrays = {name: np.stack([windows[i][name] for i in filled]) for name in windows[0]}
            document_BxT = np.stack([owners[i] for i in filled])
            document_BxT[len(chosen) :] = -1
            yield arrays, document_BxT

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
        self._logits_BxV, self._place = self._extend(np.full((batch_size, 1), model.tokenizer.bos), None)

    def read(self, text: str | bytes) -> None:
        """Read what comes next; nothing where it is empty."""
        tokens = self._model.tokenizer.encode(_as_bytes(text))
        if len(tokens):
            rows = np.broadcast_to(tokens, (self.batch_size, len(tokens)))
            self._logits_BxV, self._place = self._extend(rows, self._place)

    def write(
        self, number: int, temperature: float = 0.8, top_k: int = 40, top_p: float = 0.9, seed: int = 0
    ) -> Iterator[list[bytes]]:
        """Write so many tokens; give those of each text in pieces as they come."""
        key, model = jax.random.key(seed), self._model
        for piece in _powers(number, largest=PIECE):
            tokens_BxS, self._logits_BxV, self._place = sampling.draw(
                model.model,
                model.variables,
                self._logits_BxV,
                self._place,
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
        arrays: dict[str, Any] = {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in self._leaves()}
        with naming(Path(path)), Path(path).open("wb") as file:
            np.savez(file, model=_digest(self._model.variables), drawn=self._drawn, **arrays)

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
        except (ValueError, zipfile.BadZipFile, EOFError, AttributeError):
            raise CheckpointError(f"state {path}: not the state of a language model, or damaged") from None
        names = [jax.tree_util.keystr(name) for name, _ in self._leaves()]
        if saved.keys() != {"model", "drawn", *names} or saved["model"] != _digest(self._model.variables):
            raise CheckpointError(
                f"state {path}: of another model; it goes on with the checkpoint that it was saved with"
            )
        treedef = jax.tree.structure((self._logits_BxV, self._place))
        self._logits_BxV, self._place = jax.tree.unflatten(treedef, [jnp.asarray(saved[name]) for name in names])
        self.batch_size, self._drawn = len(self._logits_BxV), int(saved["drawn"])

    def _extend(self, tokens_BxS: np.ndarray, place: Place | None) -> tuple[jax.Array, Place]:
        logits_BxSxV, place = self._model.extend(tokens_BxS, place)
        return logits_BxSxV[:, -1], place

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
        tokenizer = make_tokenizer(meta["progress"]["task"].get("tokenizer"))
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    return LanguageModel(objective.model, {"params": load_params(path, objective)}, config, path, tokenizer)


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _powers(number: int, largest: int) -> Iterator[int]:
    """Split a number into powers of two, so that few lengths are compiled."""
    while number:
        part = min(largest, 1 << (number.bit_length() - 1))
        yield part
        number -= part


def _digest(variables: Any) -> str:
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()
