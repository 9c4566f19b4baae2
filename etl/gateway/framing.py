"""One answer as HTTP frames it. What could be read in two ways is no answer."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from http.client import HTTPMessage, HTTPResponse, RemoteDisconnected
from typing import Final, cast

from etl.gateway.inbox import Inbox, NotHTTP

_MOST_INTERIM: Final = 8
"""Interim answers (1xx) before a final one: RFC 9110, section 15.2, has every client read past them."""
_SWITCHING_PROTOCOLS: Final = 101
_MOST_LINES: Final = 100
_LONGEST_LINE: Final = 65_536
_PIECE_BYTES: Final = 256 * 1024
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]*)?\r\n")


class Framed(HTTPResponse):
    """http.client's response, read from the connection's one inbox, strict about where it begins and ends.

    ``ends_connection``: the gateway will close the connection behind it, or nobody could tell what comes next.
    """

    ends_connection = False

    def __init__(self, inbox: Inbox, method: str | None = None) -> None:
        super().__init__(cast(socket.socket, inbox), method=method)
        self._inbox = inbox

    def begin(self) -> None:
        """Reads status line and headers. Raises HTTPException where they are not clear."""
        super().begin()
        length = _clear_length(self.headers, self.version)
        self.length = length if self.length is None else self.length
        self.ends_connection = self.will_close or self.status == _SWITCHING_PROTOCOLS
        self.will_close = False  # http.client would close the socket before the body is read

    def _read_status(self) -> tuple[str, int, str]:
        """The first status line that is a final one's, also of the proxy that a tunnel begins at."""
        for _ in range(_MOST_INTERIM + 1):
            if not self._inbox.peek(1):
                raise RemoteDisconnected("no answer")
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == _SWITCHING_PROTOCOLS or not 100 <= status < 200:
                return version, status, reason
            self._skip_lines()
        raise NotHTTP(f"more than {_MOST_INTERIM} interim answers")

    @property
    def announced_bytes(self) -> int | None:
        """How long the body is; None where only its end will tell."""
        return None if self.chunked else self.length

    def whole(self) -> bytes:
        """The body, whose length is announced."""
        return self._inbox.exactly(self.announced_bytes or 0)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Raises IncompleteRead where the connection ends too early."""
        if self.chunked:
            return self._chunks()
        if self.length is not None:
            return self._exactly(self.length)
        return iter(lambda: self._inbox.read1(_PIECE_BYTES), b"")

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            piece = self._inbox.exactly(min(count, _PIECE_BYTES))
            count -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := self._chunk_size():
            yield from self._exactly(size)
            if self._inbox.exactly(2) != b"\r\n":
                raise NotHTTP("a chunk of another length than it says")
        self._skip_lines()

    def _chunk_size(self) -> int:
        found = _CHUNK_SIZE.fullmatch(self._inbox.readline(_LONGEST_LINE))
        if found is None:
            raise NotHTTP("a chunk without a length")
        return int(found[1], 16)

    def _skip_lines(self) -> None:
        """Headers of an interim answer, or the trailers behind the last chunk, to the empty line."""
        for _ in range(_MOST_LINES):
            if self._inbox.readline(_LONGEST_LINE) in (b"\r\n", b"\n"):
                return
        raise NotHTTP(f"more than {_MOST_LINES} headers")


def _clear_length(headers: HTTPMessage, version: int) -> int | None:
    """The length of the body by Content-Length, if there is one. Raises NotHTTP where headers contradict each other.

    RFC 9112, section 6.3: whoever understands them otherwise than their sender takes a part of the body for the next
    answer, or the next answer for a part of the body.
    """
    if headers.defects or headers.get_payload():
        raise NotHTTP("a line of its head is no header")
    encodings = headers.get_all("Transfer-Encoding", [])
    lengths = {length.strip() for value in headers.get_all("Content-Length", []) for length in value.split(",")}
    if encodings and (version == 10 or [each.lower() for each in encodings] != ["chunked"]):
        raise NotHTTP("a Transfer-Encoding other than chunked")
    if encodings and lengths:
        raise NotHTTP("both Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        raise NotHTTP("more than one Content-Length, or none that is a number")
    return int(lengths.pop()) if lengths else None
