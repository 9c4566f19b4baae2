"""Reads a body to its end: at once if its length is known, otherwise in pieces; both sizes are limited."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from etl.errors import GatewayUnreachable, Malformed
from etl.gateway.framing import StrictResponse

_DECODED_STEP_BYTES: Final = 1024 * 1024
_GZIP_WBITS: Final = 31


def read_body(answer: StrictResponse, max_bytes: int) -> bytes:
    """The whole decoded body. Raises Malformed over the limit, GatewayUnreachable or IncompleteRead if it ends too
    early."""
    if (answer.announced_bytes or 0) > max_bytes:
        raise _too_large(max_bytes)
    gzip = _gzip_or_none(", ".join(answer.headers.get_all("Content-Encoding", [])))
    if answer.announced_bytes and not gzip:
        return answer.whole()
    on_the_wire = 0
    body = bytearray()
    for piece in answer.pieces():
        on_the_wire += len(piece)
        for decoded in gzip.decoded(piece) if gzip else (piece,):
            body += decoded
            if max(len(body), on_the_wire) > max_bytes:
                raise _too_large(max_bytes)
    if not on_the_wire and _unframed(answer):
        raise GatewayUnreachable("the connection ended before the body", code="truncated")
    if gzip:
        gzip.finish(empty=not on_the_wire)
    return bytes(body)


def _unframed(answer: StrictResponse) -> bool:
    """Whether a 200 has no headers that announce a body: it may have been cut off."""
    return answer.status == 200 and answer.announced_bytes is None and not answer.chunked


def _too_large(max_bytes: int) -> Malformed:
    return Malformed(
        f"the body is larger than {max_bytes} bytes: if the list is really that long, raise [gateway] max_body",
        code="body_too_large",
    )


def _gzip_or_none(content_encoding: str) -> _Gzip | None:
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return _Gzip()
    raise Malformed("the body has a Content-Encoding that was not asked for", code="malformed")


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP_WBITS)

    def decoded(self, data: bytes) -> Iterator[bytes]:
        """The decoded bytes, in steps of bounded size; several gzip members in a row count as one body."""
        try:
            while data:
                if self._stream.eof:
                    self._stream = zlib.decompressobj(_GZIP_WBITS)
                step = self._stream.decompress(data, _DECODED_STEP_BYTES)
                while len(step) == _DECODED_STEP_BYTES:
                    yield step
                    step = self._stream.decompress(self._stream.unconsumed_tail, _DECODED_STEP_BYTES)
                yield step
                data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        except zlib.error:
            raise Malformed("the gzip stream of the body is damaged", code="malformed") from None

    def finish(self, empty: bool) -> None:
        if not self._stream.eof and not empty:
            raise GatewayUnreachable("the gzip stream of the body is cut short", code="truncated")
