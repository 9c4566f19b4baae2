"""What the program logs, as a test looks at it: each record's fields, and its ``level``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from etl.log import Event


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.msg, Event)
        raised = {"exc_info": True} if record.exc_info else {}
        self.entries.append({**record.msg, "level": record.levelname.lower(), **raised})


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """The list that our records go to within the block, whatever their level, instead of to the log."""
    ours, kept = logging.getLogger("etl"), _Kept()
    level = ours.level
    ours.addHandler(kept)
    ours.setLevel(logging.DEBUG)
    ours.propagate = False
    try:
        yield kept.entries
    finally:
        ours.removeHandler(kept)
        ours.setLevel(level)
        ours.propagate = True
