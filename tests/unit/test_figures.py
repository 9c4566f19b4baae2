"""The plots, as values for Plotly."""

from __future__ import annotations

import datetime as dt

from etl.report.rows import Gap, ListState
from etl.web.figures import Figure, life

BEGIN = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
Bar = tuple[str, float, float]


def day(number: float) -> dt.datetime:
    return BEGIN + dt.timedelta(days=number)


def state(user: str, first: float, last: float, *, name: str = "settlement") -> ListState:
    return ListState("o1", user, "", "7", name, "D", True, day(first), None, "baseline", None, day(last))


def gap(user: str, since: float, until: float | None) -> Gap:
    return Gap("o1", user, "", day(since), None if until is None else day(until), False)


def bars(figure: Figure, name: str) -> list[Bar]:
    """Of each bar of a trace: the row, and the days on which it begins and ends."""
    (trace,) = (each for each in figure["data"] if each["name"] == name)
    begun = [dt.datetime.fromisoformat(base).replace(tzinfo=dt.UTC) - BEGIN for base in trace["base"]]
    return [
        (row, begin / dt.timedelta(days=1), (begin + dt.timedelta(milliseconds=length)) / dt.timedelta(days=1))
        for row, begin, length in zip(trace["y"], begun, trace["x"], strict=True)
    ]


def test_a_silence_interrupts_the_bar_of_a_state_so_that_no_label_is_covered() -> None:
    figure = life([state("ann", 0, 9), state("bob", 0, 9)], day(10), [gap("ann", 6, 7), gap("ann", 2, 3)])
    assert bars(figure, "day") == [("ann", 0, 2), ("ann", 3, 6), ("ann", 7, 9), ("bob", 0, 9)]
    assert bars(figure, "nobody looked") == [("ann", 6, 7), ("ann", 2, 3)]


def test_a_state_that_was_only_seen_at_a_moment_is_drawn_over_the_silence() -> None:
    figure = life([state("ann", 0, 9), state("bob", 4, 4)], day(10), [gap("ann", 0, 9), gap("ann", 9, None)])
    assert bars(figure, "day") == [("ann", 0, 0.05), ("bob", 4, 4.05)]
    assert [trace["name"] for trace in figure["data"]] == ["nobody looked", "day"], "the last is on top"
