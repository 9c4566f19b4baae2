"""The bytes of ``data`` of an answer as they are kept: compressed, under their hash, once however often they came."""

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
    """``data``, whose hash is known already, as it is to be kept."""
    return KeptAnswer(data_hash, zlib.compress(data), len(data))


def data_of(answer: KeptAnswer) -> bytes:
    """The bytes as they came. Raises ValueError, saying what is wrong, where these are others."""
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
