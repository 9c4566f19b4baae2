"""A gateway that mixes up answers: besides the right one it sends others, too early, too late, twice or cut anywhere.

It always sends the right answer before it ends a connection. If it sent only another user's, no client could tell.
"""

from __future__ import annotations

import functools
import random
import re
import select
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tests.support.hostile import Hostile, Peer, chunked, code, flows, http

SOON = 0.001

Piece = bytes | float
"""Bytes to send, or a pause in seconds."""


class Exchange(NamedTuple):
    """What a trick works with: the right answer as HTTP, another user's, and a random generator."""

    body: bytes
    true: bytes
    other: bytes
    dice: random.Random

    def cut(self, data: bytes) -> tuple[bytes, bytes]:
        at = self.dice.randrange(len(data) + 1)
        return data[:at], data[at:]


Trick = Callable[[Exchange], Iterable[Piece]]


def honest(it: Exchange) -> Iterable[Piece]:
    return [it.true]


def in_pieces(it: Exchange) -> Iterable[Piece]:
    first, rest = it.cut(it.true)
    second, third = it.cut(rest)
    return [first, SOON, second, third]


def after_interim_answers(it: Exchange) -> Iterable[Piece]:
    interim = b"".join(it.dice.choices(INTERIM, k=it.dice.randrange(1, 5)))
    first, rest = it.cut(interim + it.true)
    return [first, SOON, rest]


def in_chunks(it: Exchange) -> Iterable[Piece]:
    first, rest = it.cut(it.body)
    whole = chunked(*filter(None, (first, rest)), end=b"0;last\r\nX-Trailer: yes\r\n\r\n")
    first, rest = it.cut(whole)
    return [first, SOON, rest]


INTERIM = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 7\r\n\r\n",
)
HARMLESS: Sequence[Trick] = (honest, in_pieces, after_interim_answers, in_chunks)
"""Allowed by HTTP: no target may fail."""


def twice_at_once(it: Exchange) -> Iterable[Piece]:
    return [it.true + it.true]


def twice(it: Exchange) -> Iterable[Piece]:
    return [it.true, SOON, it.true]


def twice_and_cut(it: Exchange) -> Iterable[Piece]:
    begun, rest = it.cut(it.true)
    return [it.true + begun, SOON, rest]


def another_behind(it: Exchange) -> Iterable[Piece]:
    begun, rest = it.cut(it.other)
    return [it.true, it.dice.choice((0.0, SOON)), begun, SOON, rest]


def another_first(it: Exchange) -> Iterable[Piece]:
    return [it.other, it.dice.choice((0.0, SOON, 5 * SOON)), it.true]


def another_after_an_interim_answer(it: Exchange) -> Iterable[Piece]:
    return [it.dice.choice(INTERIM) + it.other, SOON, it.true]


def length_too_short(it: Exchange) -> Iterable[Piece]:
    return [http(it.body, length=it.dice.randrange(len(it.body)))]


def another_within_the_body(it: Exchange) -> Iterable[Piece]:
    """The announced length ends where a second, complete answer begins."""
    return [http(it.body + it.other, length=len(it.body))]


def two_lengths(it: Exchange) -> Iterable[Piece]:
    return [http(it.body + it.other, Content_length=str(len(it.body)))]


def chunks_and_a_length(it: Exchange) -> Iterable[Piece]:
    return [chunked(it.body, Content_Length=str(it.dice.randrange(len(it.body) + 9)))]


def another_behind_the_last_chunk(it: Exchange) -> Iterable[Piece]:
    return [chunked(it.body, end=b"0\r\nX-Trailer: yes\r\n\r\n" + it.other)]


def another_among_the_trailers(it: Exchange) -> Iterable[Piece]:
    return [chunked(it.body, end=b"0\r\n" + it.other), SOON, it.true]


def body_where_none_is_allowed(it: Exchange) -> Iterable[Piece]:
    return [http(it.other, it.dice.choice((204, 304))), SOON, it.true]


def header_that_is_none(it: Exchange) -> Iterable[Piece]:
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nno header\r\nContent-Length: %d\r\n\r\n" % len(it.body)
    return [smuggled + it.body]


def refusal_twice(it: Exchange) -> Iterable[Piece]:
    return [code(62101), SOON, it.true]


HOSTILE: Sequence[Trick] = (
    *HARMLESS,
    twice_at_once,
    twice,
    twice_and_cut,
    another_behind,
    another_first,
    another_after_an_interim_answer,
    length_too_short,
    another_within_the_body,
    two_lengths,
    chunks_and_a_length,
    another_behind_the_last_chunk,
    another_among_the_trailers,
    body_where_none_is_allowed,
    header_that_is_none,
    refusal_twice,
)


class Mixer(Hostile):
    """Answers Get My Flow. ``lists``: the ids that each user sees; may be changed.

    One exchange in ``every`` uses one of ``tricks``. With ``unasked``, another user's answer is sent as often before a
    request, on a new connection or between two answers.
    """

    def __init__(
        self,
        lists: dict[str, list[str]],
        tricks: Sequence[Trick],
        *,
        every: int = 3,
        unasked: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(self._answer, early=self._interrupt if unasked else None, tls=tls)
        self.lists = lists
        self._tricks = tricks
        self._every = every
        self._unasked = unasked
        self._dice: dict[int, random.Random] = {}
        """By the number of a connection."""

    def _dice_of(self, peer: Peer) -> random.Random:
        return self._dice.setdefault(peer.number, random.Random(peer.number))

    def _interrupt(self, peer: Peer) -> None:
        dice = self._dice_of(peer)
        if not dice.randrange(self._every):
            select.select([peer.connection], [], [], dice.random() * 4 * SOON)
            peer.send(self._answer_of(dice.choice(list(self.lists))))

    def _answer(self, peer: Peer) -> None:
        assert peer.request is not None
        dice, (user,) = self._dice_of(peer), re.findall("userId=([^& ]+)", peer.request.target)
        trick = honest if dice.randrange(self._every) else dice.choice(self._tricks)
        true, other = self._answer_of(user), self._answer_of(dice.choice([each for each in self.lists if each != user]))
        for piece in trick(Exchange(_body(tuple(self.lists[user])), true, other, dice)):
            if isinstance(piece, bytes):
                peer.send(piece)
            else:
                time.sleep(piece)
        if self._unasked and peer.request.headers.get("connection") != "close":
            self._interrupt(peer)

    def _answer_of(self, user: str) -> bytes:
        return http(_body(tuple(self.lists[user])))


@functools.cache
def _body(ids: tuple[str, ...]) -> bytes:
    return flows(*({"flowId": each, "flowName": each, "cycle": "D", "editable": True} for each in ids))
