"""Which requests are repeated after an error, and how. What is left in the end is one failure of the target.

For example, EnOS answers 200 with half a body, over TLS or not:

| half a body | code | repeated |
|---|---|---|
| ends before its length, last chunk or end of its gzip stream | truncated | within the deadline, after a pause |
| has none of these, and no byte | truncated | the same |
| ends before its JSON does: it has no length, or a proxy's (``answer``) | truncated | the same |
| breaks off by a reset, or has a chunk without a length | connection, protocol | the same |
| stops coming | timeout, deadline | the same, until the deadline |
| is followed by bytes of no request | desync | first at once, over a connection of its own; then the same |
| is another text than JSON, an empty one, or damaged gzip | malformed | only at once, over a connection of its own |

In all rows but the last nothing was answered (GatewayUnreachable): many such targets in a row mean that the gateway is
down, and a target that EnOS refused before stays refused. The last (Malformed) is an answer that says something wrong.
What came over a connection of its own is not repeated at once: it cannot have been meant for another request.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from etl.errors import GatewayError, TransientGatewayError
from etl.gateway.answer import RawAnswer
from etl.gateway.calls import Request
from etl.gateway.connection import CERTIFICATE
from etl.gateway.deadline import Deadline
from etl.gateway.errors import RENEWING
from etl.gateway.token import Token, TokenKeeper
from etl.log import get_logger

T = TypeVar("T")

RETRY_AFTER_FLOOR_SECONDS: Final = 0.2
_SAID_EVERY_SECONDS: Final = 60.0
"""How often the log says that requests are tried again."""
_STAYS: Final = (CERTIFICATE, "deadline")
"""A bad certificate stays bad, and a deadline that has passed stays passed."""


@dataclass(slots=True)
class Pending(Generic[T]):
    """One request until its answer, and what was tried so far."""

    request: Request
    read: Callable[[RawAnswer], T]
    deadline: Deadline
    own_connection: bool = False
    attempts: int = 0
    refused_token: Token | None = None
    last_error: GatewayError | None = None


class Repeater:
    """Repeats requests, with the tokens that they need, and says so in the log once a minute. Thread-safe."""

    def __init__(self, tokens: TokenKeeper | None) -> None:
        self._tokens = tokens
        self._saying = threading.Lock()
        self._say_again_at = 0.0

    def until_answered(self, pending: Pending[T], send: Callable[[Pending[T], Token | None], T]) -> T:
        """Sends a request until it is answered, refused for good, or its deadline has come.

        Raises Interrupted, or the last GatewayError: at the latest if the next pause would end after the deadline.
        """
        retries = 0
        try:
            pending.deadline.check()
            while True:
                try:
                    return self._attempt(pending, send)
                except TransientGatewayError as error:
                    pause = pause_seconds(error, retries)
                    if error.code in _STAYS or pause >= pending.deadline.remaining():
                        raise
                    self._say(error, pending)
                pending.deadline.pause(pause)
                retries += 1
        except GatewayError as error:
            _complete(error, pending)
            raise

    def _attempt(self, pending: Pending[T], send: Callable[[Pending[T], Token | None], T]) -> T:
        """One attempt, with what has to be asked again at once."""
        try:
            while True:
                token = self._token(pending)
                try:
                    return send(pending, token)
                except GatewayError as error:
                    if not _asks_again(pending, error, token):
                        raise
        except TransientGatewayError as error:
            if error.code != "deadline":
                pending.last_error = error
            raise

    def _token(self, pending: Pending[T]) -> Token | None:
        try:
            return self._tokens.current(pending.deadline, pending.refused_token) if self._tokens else None
        except GatewayError:
            pending.attempts += 1
            raise

    def _say(self, error: TransientGatewayError, pending: Pending[T]) -> None:
        """Log that a request is tried again; once a minute, however many requests are."""
        now = time.monotonic()
        with self._saying:
            if now < self._say_again_at:
                return
            self._say_again_at = now + _SAID_EVERY_SECONDS
        left = max(pending.deadline.remaining(), 0)
        get_logger(__name__).info(
            "request_retried",
            call=pending.request.call,
            error_code=error.code,
            message=error.message,
            remedy=f"it is tried again until its deadline, in {left:.0f} s; so are others",
        )


def pause_seconds(error: TransientGatewayError, retries: int) -> float:
    """The pause after so many retries: what was asked for, or a random one of at most 0.2, 0.4, 0.8 ... 20 s."""
    asked = error.retry_after_seconds
    if asked is None:
        return random.uniform(0.05, min(0.2 * 2 ** min(retries, 7), 20.0))
    return max(asked, RETRY_AFTER_FLOOR_SECONDS) + random.uniform(0, RETRY_AFTER_FLOOR_SECONDS)


def _asks_again(pending: Pending[T], error: GatewayError, token: Token | None) -> bool:
    """Whether to ask again at once, over a separate connection.

    A token that is not accepted is renewed, once a request. A refusal over a kept connection may be meant for another
    request. Errors that are retried anyway are not asked again here, but for a connection that mixes up answers.
    """
    if token is not None and error.code in RENEWING:
        if pending.refused_token:
            return False
        pending.refused_token, pending.last_error = token, error
    elif pending.own_connection or (error.transient and error.code != "desync"):
        return False
    pending.own_connection = True
    return True


def _complete(error: GatewayError, pending: Pending[T]) -> None:
    """Add what only the whole call knows: the number of attempts, and the error before the last one."""
    error.attempts = pending.attempts
    if error.code == "deadline" and pending.last_error is not None:
        error.message += f"; before that: {pending.last_error.message}"
    elif error.code in RENEWING and pending.refused_token:
        error.message += "; the new token is not accepted either"
    error.args = (error.message,)
