"""Text as tokens: bytes, or byte-pair encoding. Both take any bytes and give them back. No JAX."""

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ttm_jax.training.config import ConfigError

_SPECIAL = 2  # tokens that stand for no byte: what a document begins with, and padding
_NO_TEXT = re.compile("([\udc80-\udcff]+)")  # bytes that are no UTF-8, as "surrogateescape" has them


class Tokenizer(Protocol):
    """Bytes to tokens and back.

    Attributes:
        vocab_size: V.
        bos: the token that a document begins with.
        pad: the token that fills a segment.
        num_bytes: how many bytes each token stands for, int32 [V].
    """

    vocab_size: int
    bos: int
    pad: int

    @property
    def num_bytes(self) -> np.ndarray: ...

    def encode(self, data: bytes) -> np.ndarray:
        """Give the tokens of some bytes, integers [n]."""
        ...

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Give the bytes of some tokens; those that stand for no byte are left out."""
        ...

    def to_json(self) -> str | None:
        """Give all that `make_tokenizer` makes it from again; None where nothing was learnt."""
        ...


class ByteTokenizer:
    """A token for each byte, and two more; see `Tokenizer`."""

    bos, pad, vocab_size = 256, 257, 256 + _SPECIAL
    num_bytes = np.array([1] * 256 + [0] * _SPECIAL, np.int32)

    def encode(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8)

    def decode(self, tokens: Iterable[int]) -> bytes:
        return bytes(token for token in map(int, tokens) if token < 256)

    def to_json(self) -> None:
        return None


class BPETokenizer:
    """Byte-pair encoding on bytes, by the package `tokenizers`; see `Tokenizer`.

    Args:
        saved: what `to_json` gave.

    Raises:
        ConfigError: if the package is missing.
    """

    def __init__(self, saved: str):
        self._saved = saved
        self._bpe = _package().Tokenizer.from_str(saved)
        learnt = self._bpe.get_vocab_size()
        self.bos, self.pad, self.vocab_size = learnt, learnt + 1, learnt + _SPECIAL
        byte_of = {character: byte for byte, character in enumerate(_characters())}
        tokens = [self._bpe.id_to_token(i) for i in range(learnt)]
        self._bytes = [bytes(byte_of[character] for character in token) for token in tokens] + [b""] * _SPECIAL
        self._of_byte = {token[0]: i for i, token in enumerate(self._bytes) if len(token) == 1}

    @classmethod
    def train(cls, documents: Sequence[bytes], vocab_size: int) -> "BPETokenizer":
        """Learn the pairs of some documents; the same ones give the same tokenizer."""
        tokenizers = _package()
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - _SPECIAL, initial_alphabet=list(_characters()), show_progress=False
        )
        bpe.train_from_iterator((data.decode("utf-8", "replace") for data in documents), trainer)
        return cls(bpe.to_str())

    @cached_property
    def num_bytes(self) -> np.ndarray:
        return np.array([len(token) for token in self._bytes], np.int32)

    def encode(self, data: bytes) -> np.ndarray:
        tokens: list[int] = []
        for part in _NO_TEXT.split(data.decode("utf-8", "surrogateescape")):
            if _NO_TEXT.match(part):
                tokens += [self._of_byte[byte] for byte in part.encode("utf-8", "surrogateescape")]
            elif part:
                tokens += self._bpe.encode(part).ids
        return np.array(tokens, np.int32)

    def decode(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self._bytes[int(token)] for token in tokens)

    def to_json(self) -> str:
        return self._saved


def drawable(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Say which tokens of a model's vocabulary may be drawn, bool [V]: those that stand for bytes."""
    return np.pad(tokenizer.num_bytes > 0, (0, vocab_size - tokenizer.vocab_size))


def make_tokenizer(saved: str | None) -> Tokenizer:
    """Make the tokenizer of what its `to_json` gave."""
    return ByteTokenizer() if saved is None else BPETokenizer(saved)


def as_text(pieces: Iterable[bytes]) -> Iterator[str]:
    """Give bytes as text as they come: a character is held back until it is whole, and what is none is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)


def _characters() -> str:
    """The character that byte-level encoding writes for each byte: itself where it can be seen."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in visible else next(others)) for byte in range(256))


def _package() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        needs = "data.tokenizer bpe needs the extra text: pip install 'token-turing-machine[text]'"
        raise ConfigError(needs) from None
    return tokenizers
