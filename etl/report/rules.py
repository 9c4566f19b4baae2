"""The rules as they were last evaluated, and how much each has found that is still so."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, or_, select

from etl.report.conditions import Condition
from etl.report.reading import short_transaction
from etl.schema import finding, rule


class RuleState(NamedTuple):
    """A rule, and its open findings."""

    rule: str
    title: str
    severity: str
    open: int
    since: dt.datetime | None
    """Since when the oldest of them is open."""
    evaluated_at: dt.datetime | None
    took_ms: int
    failing_since: dt.datetime | None
    error: str | None
    """What the rule does wrong, or why its file is no rule; its findings stay as they were."""


def rule_states(engine: Engine) -> list[RuleState]:
    """Every rule, by name. Raises DatabaseError."""
    with short_transaction(engine) as connection:
        return states_within(connection)


def states_within(connection: Connection) -> list[RuleState]:
    """The same, within the caller's transaction."""
    counted = select(finding.c.rule, func.count().label("open"), func.min(finding.c.since).label("since"))
    opened = counted.where(finding.c.until.is_(None)).group_by(finding.c.rule).subquery("opened")
    columns: dict[str, Any] = {column.name: column for column in rule.columns}
    columns |= {"open": func.coalesce(opened.c.open, 0).label("open"), "since": opened.c.since}
    chosen = select(*(columns[name] for name in RuleState._fields))
    chosen = chosen.join_from(rule, opened, opened.c.rule == rule.c.rule, isouter=True).order_by(rule.c.rule)
    return [RuleState(*row) for row in connection.execute(chosen)]


class RuleDay(NamedTuple):
    """How many findings of a rule were open at some time of a day, in UTC."""

    day: dt.date
    open: int


def days_of(connection: Connection, name: str, now: dt.datetime, most: int) -> list[RuleDay]:
    """The latest days since the rule first found something, the oldest first; none if it never did."""
    first = connection.scalar(select(func.min(finding.c.since)).where(finding.c.rule == name))
    if first is None:
        return []
    today = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = max(first.replace(hour=0, minute=0, second=0, microsecond=0), today - dt.timedelta(days=most - 1))
    # those of one evaluation are counted together, so the number of findings does not matter
    spans = select(finding.c.since, finding.c.until, func.count()).group_by(finding.c.since, finding.c.until)
    spans = spans.where(finding.c.rule == name, or_(finding.c.until.is_(None), finding.c.until >= begin))
    found = [tuple(row) for row in connection.execute(spans)]
    days = [begin + dt.timedelta(days=number) for number in range((today - begin).days + 1)]
    after = [day + dt.timedelta(days=1) for day in days]
    return [
        RuleDay(day.date(), sum(many for since, until, many in found if since < end and (until is None or until > day)))
        for day, end in zip(days, after, strict=True)
    ]


def failing_rules(states: Sequence[RuleState]) -> Iterator[Condition]:
    """A condition for each rule that cannot be evaluated."""
    for each in states:
        if each.error is not None:
            summary = f"The rule {each.rule} {each.error.rstrip('.')}"
            yield Condition("rule_failing", summary, each.rule, each.failing_since, 1, (each.rule,))
