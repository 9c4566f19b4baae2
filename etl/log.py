"""The log: lines for people on a terminal, JSON elsewhere, always on stderr; one record is one line."""

from __future__ import annotations

import datetime as dt
import logging
import math
import sys
import threading
import time
from collections.abc import Hashable, MutableMapping
from typing import Any, Final, Literal, TextIO

from etl.printable import printable
from etl.system import streams

_FOREIGN_LEVEL: Final = logging.WARNING
"""Libraries are logged from WARNING on: their DEBUG lines contain queries and headers."""
REPEAT_SECONDS: Final = 60.0
_MOST_REMEMBERED: Final = 1000
_VARYING: Final = {"timestamp", "path"}
"""Fields that may differ between records that say the same."""


def configure(level: str, style: Literal["auto", "console", "json"], stream: TextIO | None = None) -> None:
    """Send our log, and the libraries' warnings, to ``stream`` (stderr). A full disk or pipe stops nothing."""
    import structlog

    stream = stream or sys.stderr
    as_console = style == "console" or (style == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _stamped if as_console else structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _on_one_line,
    ]
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if as_console:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    written = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    handler = _Handler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=written))
    handler.addFilter(Repeats())
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_FOREIGN_LEVEL)
    _silence_addresses()
    logging.getLogger("etl").setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def configure_for_libraries(level: str, style: Literal["auto", "console", "json"]) -> None:
    """For a command that logs nothing itself: the log is only configured when a library logs a warning."""
    logging.getLogger().handlers[:] = [_Unloaded(level, style)]
    logging.getLogger().setLevel(_FOREIGN_LEVEL)
    _silence_addresses()


def _silence_addresses() -> None:
    """urllib3's warnings quote whole addresses; those of receivers and pings contain secrets. Our errors say enough."""
    logging.getLogger("urllib3").propagate = False


class _Unloaded(logging.Handler):
    """Configures the log at the first record, which is then logged like any other."""

    def __init__(self, level: str, style: Literal["auto", "console", "json"]) -> None:
        super().__init__()
        self._configured = (level, style)

    def emit(self, record: logging.LogRecord) -> None:
        configure(*self._configured)
        logging.getLogger().handle(record)


class _Handler(logging.StreamHandler[TextIO]):
    """Logs how much of the log was dropped, once there is room again."""

    def emit(self, record: logging.LogRecord) -> None:
        dropped = streams.dropped(self.stream)
        if dropped:
            import structlog

            structlog.get_logger("etl.log").warning("log_dropped", bytes=dropped, why="standard error was full")
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
        if record.levelno < logging.WARNING or (isinstance(record.msg, dict) and "run_id" in record.msg):
            return True
        with self._lock:
            left_out = self._left_out_before(_fingerprint(record), time.monotonic())
        if left_out and isinstance(record.msg, dict):
            record.msg = {**record.msg, "left_out": left_out}
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
    if isinstance(record.msg, dict):
        fields = frozenset((key, repr(value)) for key, value in record.msg.items() if key not in _VARYING)
        return record.name, record.levelno, fields
    kind, _, trace = record.exc_info or (None, None, None)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return record.name, record.levelno, str(record.msg), kind, trace and (trace.tb_frame.f_code, trace.tb_lineno)


def _stamped(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """This machine's time, with its offset from UTC."""
    event["timestamp"] = dt.datetime.now(dt.UTC).astimezone().isoformat(" ", "seconds").replace("+00:00", "Z")
    return event


def _on_one_line(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape foreign text, so that it can neither begin a new line nor control the terminal."""
    if "exception" in event:
        event["traceback"] = " | ".join(str(event.pop("exception")).splitlines())
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = printable(value)
        elif isinstance(value, list | tuple | set | frozenset):
            event[key] = [printable(str(item)) for item in value]
    return event
