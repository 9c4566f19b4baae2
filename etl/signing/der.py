"""As much of DER (ITU-T X.690) as it takes to put the certificates of a time stamp in order.

OpenSSL, and authorities that use it, write the certificates of a token in the order of the chain. DER sorts a set, and
rfc3161_client refuses one that is not sorted. No signature covers the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_SEQUENCE: Final = 0x30
_CERTIFICATES: Final = 0xA0


def sequence(content: bytes) -> bytes:
    """``content`` as a SEQUENCE."""
    return _element(_SEQUENCE, content)


def with_sorted_certificates(response: bytes) -> bytes:
    """A TimeStampResp with the certificates of its token sorted. Raises ValueError if it is not DER."""
    status, *token = _elements(_content(response))
    if not token:
        return response
    content_type, explicit = _elements(_content(token[0]))
    (signed_data,) = _elements(_content(explicit))
    fields = [_sorted(field) if field[0] == _CERTIFICATES else field for field in _elements(_content(signed_data))]
    rebuilt = _element(explicit[0], sequence(b"".join(fields)))
    return sequence(status + sequence(content_type + rebuilt))


def _sorted(certificates: bytes) -> bytes:
    return _element(_CERTIFICATES, b"".join(sorted(_elements(_content(certificates)))))


def _elements(content: bytes) -> Iterator[bytes]:
    while content:
        _, end = _bounds(content)
        yield content[:end]
        content = content[end:]


def _content(element: bytes) -> bytes:
    start, end = _bounds(element)
    if end != len(element):
        raise ValueError("bytes after the end")
    return element[start:end]


def _bounds(data: bytes) -> tuple[int, int]:
    """Where the content of the first element begins and ends."""
    if len(data) < 2 or data[0] & 0x1F == 0x1F or data[1] == 0x80:
        raise ValueError("no DER")
    size = data[1] & 0x7F if data[1] & 0x80 else 0
    start = 2 + size
    length = int.from_bytes(data[2:start], "big") if size else data[1]
    if start + length > len(data):
        raise ValueError("cut short")
    return start, start + length


def _element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content
