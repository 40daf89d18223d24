"""Text as tokens. NumPy only."""

import codecs
from collections.abc import Iterable, Iterator

import numpy as np


class ByteTokenizer:
    """A token for each byte, so that any input is text; and two more.

    Attributes:
        bos: the token that a document begins with.
        pad: the token that fills a segment.
        vocab_size: V.
    """

    bos, pad, vocab_size = 256, 257, 258

    def encode(self, data: bytes) -> np.ndarray:
        """Give the tokens of some bytes, int32 [n]."""
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Give the bytes of some tokens; those that stand for no byte are left out."""
        return bytes(token for token in map(int, tokens) if token < 256)


def as_text(pieces: Iterable[bytes]) -> Iterator[str]:
    """Give bytes as text as they come: a character is held back until it is whole, and what is none is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)
