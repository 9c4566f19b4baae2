"""One answer as HTTP frames it. Bytes that could be read in two ways are not an answer."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from http.client import HTTPMessage, HTTPResponse, RemoteDisconnected
from typing import Final, cast

from etl.gateway.connection_reader import ConnectionReader, NotHTTP

_MOST_INTERIM: Final = 8
"""Interim answers (1xx) before a final one: RFC 9110, section 15.2, has every client read past them."""
_SWITCHING_PROTOCOLS: Final = 101
_WITHOUT_BODY: Final = (_SWITCHING_PROTOCOLS, 204, 304)
_MOST_LINES: Final = 100
_LONGEST_LINE: Final = 65_536
_PIECE_BYTES: Final = 256 * 1024
_STATUS_LINE: Final = re.compile(rb"(HTTP/1\.[01])[ \t]+([1-9][0-9]{2})(?:[ \t]+([^\n]*))?\r?\n")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\n]*)\n")
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]*)?\r\n")


class StrictResponse(HTTPResponse):
    """http.client's response, read through the connection's only buffer, strict about where it begins and ends.

    ``ends_connection``: the gateway will close the connection after it, or it is unclear what would come next.
    """

    ends_connection = False

    def __init__(self, reader: ConnectionReader, method: str | None = None) -> None:
        super().__init__(cast(socket.socket, reader), method=method)
        self._reader = reader

    def begin(self) -> None:
        """Reads status line and headers. Raises HTTPException if they are ambiguous."""
        version, self.status, self.reason = self._read_status()
        self.code, self.version = self.status, 10 if version == "HTTP/1.0" else 11
        self.headers = self.msg = self._read_headers()
        self.chunked = _is_chunked(self.headers, self.version)
        self.length = 0 if self.status in _WITHOUT_BODY else _length(self.headers, self.chunked)
        unframed = not self.chunked and self.length is None
        self.ends_connection = unframed or self.status == _SWITCHING_PROTOCOLS or _closes(self.headers, self.version)
        self.will_close = False  # http.client would close the socket before the body is read

    def _read_status(self) -> tuple[str, int, str]:
        """The first status line that is not interim; also used for the proxy of a tunnel."""
        for _ in range(_MOST_INTERIM + 1):
            if not self._reader.peek(1):
                raise RemoteDisconnected("no answer")
            found = _STATUS_LINE.fullmatch(self._reader.readline(_LONGEST_LINE))
            if found is None:
                raise NotHTTP("no status line of HTTP/1.1")
            status = int(found[2])
            if status == _SWITCHING_PROTOCOLS or not 100 <= status < 200:
                return found[1].decode(), status, _text(found[3] or b"")
            self._skip_lines()
        raise NotHTTP(f"more than {_MOST_INTERIM} interim answers")

    def _read_headers(self) -> HTTPMessage:
        """Without http.client's e-mail parser, which stops at a line that is not a header, and hides the rest."""
        lines: list[tuple[str, str]] = []
        for _ in range(_MOST_LINES):
            line = self._reader.readline(_LONGEST_LINE)
            if line in (b"\r\n", b"\n"):
                return _message(lines)
            if line[:1] in (b" ", b"\t") and lines:
                lines[-1] = (lines[-1][0], f"{lines[-1][1]} {_text(line)}".strip(" "))
                continue
            found = _HEADER.fullmatch(line)
            if found is None:
                raise NotHTTP("a line of its head is not a header")
            lines.append((found[1].decode(), _text(found[2])))
        raise NotHTTP(f"more than {_MOST_LINES} headers")

    @property
    def announced_bytes(self) -> int | None:
        """The length of the body; None if only its end will tell."""
        return None if self.chunked else self.length

    def whole(self) -> bytes:
        """The body, if its length is announced."""
        return self._reader.exactly(self.announced_bytes or 0)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Raises IncompleteRead if the connection ends too early."""
        if self.chunked:
            return self._chunks()
        if self.length is not None:
            return self._exactly(self.length)
        return iter(lambda: self._reader.read1(_PIECE_BYTES), b"")

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            piece = self._reader.exactly(min(count, _PIECE_BYTES))
            count -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := self._chunk_size():
            yield from self._exactly(size)
            if self._reader.exactly(2) != b"\r\n":
                raise NotHTTP("a chunk is not as long as it says")
        self._skip_lines()

    def _chunk_size(self) -> int:
        found = _CHUNK_SIZE.fullmatch(self._reader.readline(_LONGEST_LINE))
        if found is None:
            raise NotHTTP("a chunk without a length")
        return int(found[1], 16)

    def _skip_lines(self) -> None:
        """Skips the headers of an interim answer, or the trailers after the last chunk, up to the empty line."""
        for _ in range(_MOST_LINES):
            if self._reader.readline(_LONGEST_LINE) in (b"\r\n", b"\n"):
                return
        raise NotHTTP(f"more than {_MOST_LINES} headers")


def _text(value: bytes) -> str:
    return value.strip(b" \t\r\n").decode("latin-1")


def _message(lines: list[tuple[str, str]]) -> HTTPMessage:
    message = HTTPMessage()
    for name, value in lines:
        message[name] = value
    return message


def _closes(headers: HTTPMessage, version: int) -> bool:
    options = ",".join(headers.get_all("Connection", [])).lower()
    return "close" in options or (version == 10 and "keep-alive" not in options)


# RFC 9112, section 6.3: a reader who understands a contradictory head differently from its sender takes a part of the
# body for the next answer, or the next answer for a part of the body.


def _is_chunked(headers: HTTPMessage, version: int) -> bool:
    """Raises NotHTTP for any other Transfer-Encoding, which nobody asked for."""
    encodings = [each.lower() for each in headers.get_all("Transfer-Encoding", [])]
    if encodings and (encodings != ["chunked"] or version == 10):
        raise NotHTTP("a Transfer-Encoding other than chunked")
    return bool(encodings)


def _length(headers: HTTPMessage, chunked: bool) -> int | None:
    """Content-Length, which may be repeated with the same value; raises NotHTTP if it says anything else."""
    lengths = {length.strip(" \t") for value in headers.get_all("Content-Length", []) for length in value.split(",")}
    if lengths and chunked:
        raise NotHTTP("both Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        raise NotHTTP("more than one Content-Length, or none that is a number")
    return int(lengths.pop()) if lengths else None
