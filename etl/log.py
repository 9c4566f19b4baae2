"""The log: lines for people on a terminal, JSON elsewhere, always on stderr; one record is one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

from etl import streams
from etl.printable import printable

_FOREIGN_LEVEL: Final = logging.WARNING
"""Libraries are heard from WARNING on: their DEBUG lines carry queries and headers."""


def configure(level: str, style: Literal["auto", "console", "json"], stream: TextIO | None = None) -> None:
    """Send our log, and the libraries' warnings, to ``stream`` (stderr). A full disk or pipe stops nothing."""
    stream = stream or sys.stderr
    as_console = style == "console" or (style == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if as_console else "iso", utc=not as_console),
        structlog.processors.format_exc_info,
        _on_one_line,
    ]
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_final(as_console, stream))
    )
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_FOREIGN_LEVEL)
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


class _Handler(logging.StreamHandler[TextIO]):
    """Says how much of the log was dropped, once there is room again."""

    def emit(self, record: logging.LogRecord) -> None:
        dropped = streams.dropped(self.stream)
        if dropped:
            structlog.get_logger("etl.log").warning("log_dropped", bytes=dropped, why="standard error was full")
        super().emit(record)


def _final(as_console: bool, stream: TextIO) -> list[Any]:
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if as_console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]


def _on_one_line(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Nothing that comes from outside can begin a line of its own or speak to the terminal."""
    if "exception" in event:
        event["traceback"] = " | ".join(str(event.pop("exception")).splitlines())
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = printable(value)
        elif isinstance(value, list | tuple | set | frozenset):
            event[key] = [printable(str(item)) for item in value]
    return event
