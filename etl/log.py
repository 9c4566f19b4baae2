"""The log: lines for people on a terminal, JSON elsewhere, always on stderr; one record is one line."""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO

from etl.printable import printable
from etl.system import streams

_FOREIGN_LEVEL: Final = logging.WARNING
"""Libraries are logged from WARNING on: their DEBUG lines contain queries and headers."""
REPEAT_SECONDS: Final = 60.0
_MOST_REMEMBERED: Final = 1000
_VARYING: Final = {"path"}
"""Fields that may differ between records that say the same."""
_BRIGHT, _DIM, _CYAN, _MAGENTA, _RED = "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[35m", "\x1b[31m\x1b[1m"
_LEVELS: Final = {"debug": "\x1b[32m\x1b[1m", "info": "\x1b[32m\x1b[1m", "warning": "\x1b[33m\x1b[1m"}
_bound: Final[ContextVar[Mapping[str, Any]]] = ContextVar("bound")


def bound() -> Mapping[str, Any]:
    """The fields that every record of this context has."""
    return _bound.get({})


@contextmanager
def binding(**fields: Any) -> Iterator[None]:
    """Give every record within the block these fields."""
    token = _bound.set({**bound(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


class Event(dict[str, Any]):
    """What a record of ours says: its fields, and "event"."""


class Logger(logging.LoggerAdapter[logging.Logger]):
    """Logs events with their fields: ``log.warning("not_told", receiver=name)``."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        passed_on = {"exc_info": kwargs.pop("exc_info", None)}
        fields = {**kwargs, "event": msg}
        return Event({**fields, **bound(), **fields}), passed_on


def get_logger(name: str) -> Logger:
    return Logger(logging.getLogger(name))


def configure(level: str, style: Literal["auto", "console", "json"], stream: TextIO | None = None) -> None:
    """Send our log, and the libraries' warnings, to ``stream`` (stderr). A full disk or pipe stops nothing."""
    stream = stream or sys.stderr
    handler = _Handler(stream)
    as_console = style == "console" or (style == "auto" and stream.isatty())
    handler.setFormatter(_ForPeople(stream.isatty()) if as_console else _Json())
    handler.addFilter(Repeats())
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_FOREIGN_LEVEL)
    # urllib3's warnings quote whole addresses; those of receivers and pings contain secrets. Our errors say enough.
    logging.getLogger("urllib3").propagate = False
    logging.getLogger("etl").setLevel(level)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")
        return json.dumps(self.fields(record, at), ensure_ascii=False, default=repr)

    def fields(self, record: logging.LogRecord, timestamp: str) -> dict[str, Any]:
        """What is logged, with foreign text escaped: it can neither begin a new line nor control the terminal."""
        said = record.msg if isinstance(record.msg, Event) else {"event": record.getMessage(), **bound()}
        fields = {**said, "level": record.levelname.lower(), "timestamp": timestamp}
        if record.exc_info:
            fields["traceback"] = " | ".join(self.formatException(record.exc_info).splitlines())
        return {key: _escaped(value) for key, value in fields.items()}


class _ForPeople(_Json):
    """Lines with this machine's time and its offset from UTC, and with colours if ``coloured``."""

    def __init__(self, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.now(dt.UTC).astimezone().isoformat(" ", "seconds").replace("+00:00", "Z")
        fields = self.fields(record, at)
        level, event = fields.pop("level"), fields.pop("event")
        shown = [self._in(_DIM, fields.pop("timestamp"))]
        shown += [f"[{self._in(_LEVELS.get(level, _RED), f'{level:9}')}]", self._in(_BRIGHT, f"{event:30}")]
        shown += (f"{self._in(_CYAN, key)}={self._in(_MAGENTA, _word(fields[key]))}" for key in sorted(fields))
        return " ".join(shown).rstrip(" ")

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}\x1b[0m" if self._coloured else text


def _word(value: object) -> str:
    return value if isinstance(value, str) and not set(value) & set(" =\"'") else repr(value)


def _escaped(value: object) -> object:
    if isinstance(value, list | tuple | set | frozenset):
        return [printable(str(item)) for item in value]
    return printable(value) if isinstance(value, str) else value


class _Handler(logging.StreamHandler[TextIO]):
    """Logs how much of the log was dropped, once there is room again."""

    def emit(self, record: logging.LogRecord) -> None:
        dropped = streams.dropped(self.stream)
        if dropped:
            get_logger("etl.log").warning("log_dropped", bytes=dropped, why="standard error was full")
        super().emit(record)


class Repeats(logging.Filter):
    """Lets the same warning or error pass once a minute; the next one that passes says how many were ``left_out``.

    So neither a client that sends nonsense nor a failure in a loop fills the log's disk. Records about runs pass: each
    run logs a limited number.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._passed: dict[Hashable, tuple[float, int]] = {}
        """When a record last passed, and how many were left out since."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or (isinstance(record.msg, Event) and "run_id" in record.msg):
            return True
        with self._lock:
            left_out = self._left_out_before(_fingerprint(record), time.monotonic())
        if left_out and isinstance(record.msg, Event):
            record.msg["left_out"] = left_out
        elif left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more times since)", ()
        return left_out is not None

    def _left_out_before(self, fingerprint: Hashable, now: float) -> int | None:
        """How many were left out since one passed; None if this one is left out too."""
        passed_at, left_out = self._passed.get(fingerprint, (-math.inf, 0))
        if now < passed_at + REPEAT_SECONDS:
            self._passed[fingerprint] = (passed_at, left_out + 1)
            return None
        if len(self._passed) >= _MOST_REMEMBERED:
            self._passed.clear()
        self._passed[fingerprint] = (now, 0)
        return left_out


def _fingerprint(record: logging.LogRecord) -> Hashable:
    """Equal for records that say the same. (Of a library, the text without its arguments counts.)"""
    kind, error, trace = record.exc_info or (None, None, None)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised = kind, trace and (trace.tb_frame.f_code, trace.tb_lineno)
    if isinstance(record.msg, Event):
        fields = frozenset((key, repr(value)) for key, value in record.msg.items() if key not in _VARYING)
        return record.name, record.levelno, fields, str(error), raised
    return record.name, record.levelno, str(record.msg), raised
