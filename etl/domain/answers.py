"""The bytes of an answer's ``data`` as they are kept: compressed, by their hash, and only once."""

from __future__ import annotations

import hashlib
import zlib
from typing import Final

import msgspec

ENCODING: Final = "zlib"
_LONGEST: Final = 2**31


class KeptAnswer(msgspec.Struct, frozen=True, gc=False):
    """An answer that is to be kept, or was."""

    data_hash: str
    """SHA-256 (hex) of the bytes as they came."""
    body: bytes
    length: int
    """Of the bytes as they came."""
    encoding: str = ENCODING


def kept(data_hash: str, data: bytes) -> KeptAnswer:
    """``data``, with its known hash, in the form in which it is kept."""
    return KeptAnswer(data_hash, zlib.compress(data), len(data))


def data_of(answer: KeptAnswer) -> bytes:
    """The original bytes. Raises ValueError, which says what is wrong, if these are not they."""
    if answer.encoding != ENCODING:
        raise ValueError(f"encoded as {answer.encoding!r}, which nobody can read")
    if not 0 <= answer.length <= _LONGEST:
        raise ValueError(f"said to be {answer.length} bytes long")
    opener = zlib.decompressobj()
    try:
        data = opener.decompress(answer.body, answer.length + 1)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from None
    if len(data) != answer.length or not opener.eof or opener.unused_data:
        raise ValueError("of another length than its row says")
    found = hashlib.sha256(data).hexdigest()
    if found != answer.data_hash:
        raise ValueError(f"the bytes of {found}")
    return data
