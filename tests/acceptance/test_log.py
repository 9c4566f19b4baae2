"""The log repeats a record only once a minute, whatever its source, and counts those left out."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest

from etl import log


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let seconds pass, by the clock that the log looks at."""
    now = [1000.0]
    monkeypatch.setattr("etl.log.time.monotonic", lambda: now[0])

    def let_pass(seconds: float) -> None:
        now[0] += seconds

    return let_pass


@pytest.fixture
def lines(passed: Callable[[float], None]) -> io.StringIO:
    stream = io.StringIO()
    log.configure("INFO", "json", stream)
    return stream


def entries(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_warning_that_is_repeated_is_logged_once_a_minute_and_counted(
    lines: io.StringIO, passed: Callable[[float], None]
) -> None:
    mine = log.get_logger("etl.web")
    for number in range(50):
        mine.warning("page_failed", path=f"/trail?{number}", error="the database is locked")
        passed(1)
    assert len(entries(lines)) == 1
    passed(60)
    mine.warning("page_failed", path="/", error="the database is locked")
    assert [entry.get("left_out") for entry in entries(lines)] == [None, 49]


@pytest.mark.parametrize(("zone", "offset"), [("UTC", "Z"), ("Asia/Shanghai", "+08:00")])
def test_lines_for_people_have_date_and_zone(monkeypatch: pytest.MonkeyPatch, zone: str, offset: str) -> None:
    stream = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setenv("TZ", zone)
        time.tzset()
        log.configure("INFO", "console", stream)
        log.get_logger("etl.service.replica").info("listening")
    time.tzset()
    assert re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d{re.escape(offset)} ", stream.getvalue())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


FIELDS = {"names": ("ann", "bob\n"), "target": "o/bob", "why": "no reason"}
IN_JSON = r'"names": ["ann", "bob\\x0a"], "target": "o/bob", "why": "no reason", "event": "seen", "run_id": 7'
IN_COLOURS = (
    "\x1b[2mNOW\x1b[0m [\x1b[33m\x1b[1mwarning  \x1b[0m] \x1b[1mseen                          \x1b[0m"
    " \x1b[36mnames\x1b[0m=\x1b[35m['ann', 'bob\\\\x0a']\x1b[0m \x1b[36mrun_id\x1b[0m=\x1b[35m7\x1b[0m"
    " \x1b[36mtarget\x1b[0m=\x1b[35mo/bob\x1b[0m \x1b[36mwhy\x1b[0m=\x1b[35m'no reason'\x1b[0m"
)


@pytest.mark.parametrize(
    ("stream", "style", "line"),
    [
        (io.StringIO(), "auto", f'{{{IN_JSON}, "level": "warning", "timestamp": "NOW"}}'),
        (Terminal(), "auto", IN_COLOURS),
        (io.StringIO(), "console", re.sub(r"\x1b\[\d+m", "", IN_COLOURS)),
    ],
    ids=["JSON", "terminal", "without colours"],
)
def test_a_record_is_a_line_of_its_own_fields_and_those_of_its_context(
    stream: io.StringIO, style: Literal["auto", "console"], line: str
) -> None:
    log.configure("INFO", style, stream)
    with log.binding(run_id=7, target="o/ann"):
        log.get_logger("etl.test").warning("seen", **FIELDS)
    said = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+(Z|\+\d\d:\d\d)", "NOW", stream.getvalue())
    assert said == f"{line}\n"


def test_different_records_those_of_a_run_and_those_below_warning_are_logged_each_time(lines: io.StringIO) -> None:
    mine = log.get_logger("etl.service.replica")
    for schedule in ("north", "south"):
        for run_id in (1, 2):
            mine.error("run_failed", schedule=schedule, error="away")
            mine.warning("target_not_through", run_id=run_id, target="o1/ann")
            mine.info("listening")
    said = [entry["event"] for entry in entries(lines)]
    assert said == ["run_failed", "target_not_through", "listening", "target_not_through", "listening"] * 2


def test_a_library_that_fails_in_a_loop_is_logged_once_a_minute(
    lines: io.StringIO, passed: Callable[[float], None]
) -> None:
    theirs = logging.getLogger("uvicorn.error")
    for kind in (ValueError, KeyError):
        for number in range(20):
            try:
                raise kind(number)
            except Exception:
                theirs.exception("Exception in ASGI application")
            theirs.warning("%s is no request", number)
    passed(61)
    theirs.warning("%s is no request", "This")
    said = [(entry["event"], "traceback" in entry) for entry in entries(lines)]
    assert said == [
        ("Exception in ASGI application", True),
        ("0 is no request", False),
        ("Exception in ASGI application", True),
        ("This is no request (and 39 more times since)", False),
    ]


def test_many_different_warnings_take_no_more_memory_than_a_thousand(lines: io.StringIO) -> None:
    repeats = log.Repeats()
    for number in range(5000):
        assert repeats.filter(logging.makeLogRecord({"levelno": logging.ERROR, "msg": f"number {number}"}))
    assert len(repeats._passed) <= 1000


def test_warnings_that_quote_addresses_are_not_logged(lines: io.StringIO) -> None:
    """urllib3 quotes whole addresses, and those of receivers contain secrets."""
    logging.getLogger("urllib3.connectionpool").warning("Failed to parse headers (url=%s)", "https://hooks/token-7")
    logging.getLogger("another library").warning("late")
    assert [entry["event"] for entry in entries(lines)] == ["late"]
