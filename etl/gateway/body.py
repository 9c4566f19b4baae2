"""Reading a body to its end: at once where its length is known, else in pieces; capped on the wire and decoded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from urllib3 import BaseHTTPResponse

from etl.errors import GatewayUnreachable, Malformed

_READ_BYTES: Final = 256 * 1024
_DECODED_STEP_BYTES: Final = 1024 * 1024
_GZIP_WBITS: Final = 31


def read_body(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    """The whole decoded body. Raises Malformed over the cap, GatewayUnreachable where it ends too early."""
    announced = _announced(response.headers.get("Content-Length", ""))
    if announced > max_bytes:
        raise _too_large(max_bytes)
    gzip = _gzip_or_none(response.headers.get("Content-Encoding", ""))
    if announced and announced == response.length_remaining and not gzip:
        return response.read(decode_content=False)
    on_the_wire = 0
    body = bytearray()
    while piece := response.read1(_READ_BYTES, decode_content=False):
        on_the_wire += len(piece)
        for decoded in gzip.decoded(piece) if gzip else (piece,):
            body += decoded
            if max(len(body), on_the_wire) > max_bytes:
                raise _too_large(max_bytes)
    if not on_the_wire and _unframed(response):
        raise GatewayUnreachable("the connection ends before a body begins", code="truncated")
    if gzip:
        gzip.finish(empty=not on_the_wire)
    return bytes(body)


def _unframed(response: BaseHTTPResponse) -> bool:
    """A 200 whose headers announce no body: http.client also takes headers that are cut off for whole ones."""
    headers = response.headers
    return response.status == 200 and "Content-Length" not in headers and "Transfer-Encoding" not in headers


def _announced(content_length: str) -> int:
    """The length in bytes; 0 where the header says nothing that can be relied on."""
    return int(content_length) if content_length.isdecimal() and len(content_length) < 20 else 0


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
        """What the bytes decode to, a bounded step at a time; several members in a row count as one body."""
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
            raise GatewayUnreachable("the gzip stream of the body ends before its end", code="truncated")
