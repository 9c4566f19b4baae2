"""The plots: figures for Plotly, as plain values.

A colour that begins with ``--`` names a property of the style sheet, so that it follows dark and light mode; the page's
script inserts its value. Plotly interprets its own markup in every text, so foreign text is escaped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from etl.domain.kinds import EVENT_KINDS
from etl.domain.model import CYCLE_LABELS
from etl.report.rows import Gap, ListState
from etl.report.summaries import CYCLES, OTHER, Churn, DaySnapshot, Scope
from etl.web.labels import cycle_label, foreign, kind_label, user_label

Figure = dict[str, Any]
_Span = tuple[dt.datetime, dt.datetime]

_ROW_PIXELS: Final = 30
_LEAST_SHARE: Final = 200
"""A bar in a timeline has at least this part of its length, or it could not be seen."""


def label(words: str) -> str:
    """Foreign text, escaped so that Plotly shows it literally."""
    return foreign(words, 60).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _bars_of_events(rows: Collection[Mapping[str, int]]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """A bar for each kind of event that there is, and its length in each row."""
    for kind in EVENT_KINDS:
        numbers = [row.get(kind, 0) for row in rows]
        if any(numbers):
            yield {"type": "bar", "name": kind_label(kind), "marker": {"color": f"--kind-{kind}"}}, numbers


def events_by_day(days: Mapping[dt.date, Mapping[str, int]], scope: Scope, first: dt.date | None) -> Figure:
    """A stacked bar per day; ``first`` is the day of the first observation."""
    dates = [day.isoformat() for day in days]
    return {
        "data": [{**bar, "x": dates, "y": numbers} for bar, numbers in _bars_of_events(days.values())],
        "layout": {
            "barmode": "stack",
            "hovermode": "x unified",
            "yaxis": {"title": {"text": "events"}, "rangemode": "tozero"},
            **_days_of(scope, first),
        },
    }


def events_by_organisation(churn: Sequence[Churn]) -> Figure:
    """One bar per organisation, the one with most events on top."""
    names, bars = [label(row.org_id) for row in churn], _bars_of_events([row.events for row in churn])
    return {
        "data": [{**bar, "orientation": "h", "y": names, "x": numbers} for bar, numbers in bars],
        "layout": {
            "barmode": "stack",
            "hovermode": "y unified",
            "height": 110 + _ROW_PIXELS * len(churn),
            "yaxis": {"type": "category", "autorange": "reversed"},
            "xaxis": {"title": {"text": "events"}, "rangemode": "tozero"},
        },
    }


def workflows_by_cycle(day_snapshots: Sequence[DaySnapshot], scope: Scope, first: dt.date | None) -> Figure:
    """Stacked areas; below them, the share of targets whose list was not known. A single day is a bar."""
    days = [day.day.isoformat() for day in day_snapshots]
    data = list[dict[str, Any]]()
    for cycle in CYCLES:
        numbers, colour = [day.by_cycle[cycle] for day in day_snapshots], f"--cycle-{cycle}"
        bar = {"type": "bar", "marker": {"color": colour}}
        line = {"line": {"width": 1, "color": colour}, "fillcolor": colour}
        area = {"type": "scatter", "mode": "lines", "stackgroup": "cycle", **line}
        if any(numbers):
            data.append({**(bar if len(days) == 1 else area), "name": cycle_label(cycle), "x": days, "y": numbers})
    layout = {
        "barmode": "stack",
        "hovermode": "x unified",
        "yaxis": {"title": {"text": "workflows"}, "rangemode": "tozero", "domain": [0, 1]},
        **_days_of(scope, first),
    }
    if any(each.unobserved for each in day_snapshots):
        shares = [round(day.share_unobserved, 4) for day in day_snapshots]
        share = {"type": "bar", "name": "targets not observed", "marker": {"color": "--kind-baseline"}}
        data.append({**share, "x": days, "y": shares, "yaxis": "y2"})
        layout["yaxis"]["domain"] = [0.28, 1]
        layout["yaxis2"] = {"domain": [0, 0.18], "range": [0, 1], "tickformat": ".0%", "nticks": 3}
    return {"data": data, "layout": layout}


def _days_of(scope: Scope, first: dt.date | None) -> dict[str, Any]:
    """An axis with all days of the scope. A line marks where looking began, if that is one of them."""
    half = dt.timedelta(hours=12)
    begin, end = (dt.datetime.combine(day, dt.time()) for day in (scope.since, scope.until))
    days = (scope.until - scope.since).days + 1
    ticks = {"dtick": 24 * 3600 * 1000} if days <= 10 else {}
    axis = {"type": "date", "range": [str(begin - half), str(end + half)], "tickformat": "%d %b", **ticks}
    if first is None or not scope.since < first <= scope.until:
        return {"xaxis": axis}
    at = str(dt.datetime.combine(first, dt.time()) - half)
    line = {"color": "--quiet", "width": 1, "dash": "dot"}
    mark = {"x": at, "y": 1, "yref": "paper", "yanchor": "top", "xanchor": "right", "showarrow": False}
    return {
        "xaxis": axis,
        "shapes": [{"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line}],
        "annotations": [{**mark, "text": "looking began", "font": {"color": "--quiet"}}],
    }


def life(states: Sequence[ListState], now: dt.datetime, gaps: Sequence[Gap] = ()) -> Figure:
    """One row per target and one bar per state, coloured by cycle; a current state ends where it was last seen. Times
    without observations, open ones too, interrupt it and are hatched."""
    rows = list(dict.fromkeys(_row_of(state) for state in states))
    silent: dict[str, list[_Span]] = {row: [] for row in rows}
    for gap in sorted(gaps, key=lambda gap: gap.gap_from):
        silent.get(_row_of(gap), []).append((gap.gap_from, gap.gap_to or now))
    least = (now - _begin(states)) / _LEAST_SHARE
    by_cycle: dict[str, list[ListState]] = {cycle: [] for cycle in CYCLES}
    for state in states:
        by_cycle[state.cycle if state.cycle in CYCLE_LABELS else OTHER].append(state)
    return {
        "data": [
            *_silences(rows, states, gaps, now),
            *(_bars(cycle, mine, silent, least) for cycle, mine in by_cycle.items() if mine),
        ],
        "layout": {
            "barmode": "overlay",
            "hovermode": "closest",
            "uniformtext": {"minsize": 11, "mode": "hide"},
            "height": 110 + _ROW_PIXELS * len(rows),
            "yaxis": {"type": "category", "categoryarray": rows[::-1], "categoryorder": "array"},
            "xaxis": {"type": "date", "range": [_stamp(_begin(states)), _stamp(now)]},
        },
    }


def _bars(
    cycle: str, states: Sequence[ListState], silent: Mapping[str, Sequence[_Span]], least: dt.timedelta
) -> Mapping[str, Any]:
    """A bar, with a label if there is room, for each time in which a state was seen without interruption; one of the
    length ``least`` for a state that was only seen at a moment."""
    parts = [
        (state, *part)
        for state in states
        for part in _without((state.valid_from, _end(state)), silent[_row_of(state)])
        or [(state.valid_from, state.valid_from + least)]
    ]
    return {
        **_lengths(parts),
        "name": cycle_label(cycle),
        "text": [label(state.flow_name or "") for state, _, _ in parts],
        "textposition": "inside",
        "insidetextanchor": "start",
        "insidetextfont": {"color": f"--on-cycle-{cycle}"},
        "textangle": 0,
        "customdata": [[_stamp(state.valid_from), _stamp(_end(state))] for state, _, _ in parts],
        "hovertemplate": "%{text}<br>%{customdata[0]} to %{customdata[1]}",
        "marker": {"color": f"--cycle-{cycle}", "line": {"width": 1, "color": "--surface"}},
    }


def _lengths(parts: Sequence[tuple[ListState | Gap, dt.datetime, dt.datetime]]) -> dict[str, Any]:
    """A bar in its row, from one time to another."""
    return {
        "type": "bar",
        "orientation": "h",
        "y": [_row_of(each) for each, _, _ in parts],
        "base": [_stamp(begin) for _, begin, _ in parts],
        "x": [max(1, (end - begin) // dt.timedelta(milliseconds=1)) for _, begin, end in parts],
    }


def _without(whole: _Span, silent: Sequence[_Span]) -> list[_Span]:
    """What is left of ``whole``."""
    begin, end = whole
    parts = list[_Span]()
    for since, until in silent:
        if since < end and until > begin:
            parts.append((begin, since))
            begin = until
    return [(first, last) for first, last in [*parts, (begin, end)] if first < last]


def _silences(
    rows: Sequence[str], states: Sequence[ListState], gaps: Sequence[Gap], now: dt.datetime
) -> list[Mapping[str, Any]]:
    begin = _begin(states)
    shown = [(gap, max(gap.gap_from, begin), gap.gap_to or now) for gap in gaps]
    shown = [(gap, since, until) for gap, since, until in shown if since < until and _row_of(gap) in rows]
    if not shown:
        return []
    return [
        {
            **_lengths(shown),
            "name": "nobody looked",
            "legendrank": 2000,
            "customdata": [[_stamp(since), _stamp(until), _inside(gap)] for gap, since, until in shown],
            "hovertemplate": "nobody looked<br>%{customdata[0]} to %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            "marker": {
                "color": "--surface",
                "pattern": {"shape": "/", "bgcolor": "--surface", "fgcolor": "--quiet", "size": 6, "solidity": 0.2},
                "line": {"width": 1, "color": "--quiet"},
            },
        }
    ]


def _inside(gap: Gap) -> str:
    if gap.gap_to is None:
        return "not ended"
    return "changed inside" if gap.changed_inside else "the same before and after"


def _row_of(state: ListState | Gap) -> str:
    """All rows of a timeline are of one organisation."""
    return label(user_label(state.user_id, state.expression))


def _end(state: ListState) -> dt.datetime:
    return state.valid_to or state.last_listed_at or state.valid_from


def _begin(states: Sequence[ListState]) -> dt.datetime:
    return min(state.valid_from for state in states)


def _stamp(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
