"""What rules found: each evaluation is written whole, in one transaction, unless another came first.

An evaluation says which one it follows (``Evaluation.after``, the moment of the one before). If the rule's row says
otherwise when it is locked, another process has evaluated the rule meanwhile, and this one is dropped: what it read may
be older. So a process that is killed, or lost its lease, leaves what it had found before, or all that it found last.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, case, delete, exists, func, or_, select, update

from etl.domain.rules import EndedBy, as_object, compared
from etl.schema import finding, org_event, rule, run_seal, sync_run
from etl.store import webhooks
from etl.store.bulk import execute_many, insert_into, insert_rows
from etl.store.webhooks import NewNotice

_COLUMNS: Final = ("rule", "key", "row", "severity", "title", "since", "since_run_id")
LAST_RUN: Final = "SELECT run_id FROM run_seal ORDER BY id DESC LIMIT 1"
"""The run that was sealed last."""


class Evaluation(NamedTuple):
    """One evaluation of a rule as its file said then: what it found by key, or the error."""

    rule: str
    title: str
    severity: str
    text: str
    after: dt.datetime | None
    """When the rule was evaluated before; None: never."""
    at: dt.datetime
    seal_id: int
    took_ms: int
    run_id: int | None = None
    """The last run whose result it saw."""
    found: Mapping[str, str] = {}
    error: str | None = None


class KnownRule(NamedTuple):
    """A rule as the database knows it."""

    rule: str
    title: str
    severity: str
    text: str
    evaluated_at: dt.datetime | None
    seal_id: int
    failing_since: dt.datetime | None
    error: str | None


class Written(NamedTuple):
    """What an evaluation changed: how many findings began and ended."""

    begun: int
    ended: int


def known_rules(connection: Connection) -> dict[str, KnownRule]:
    """Every rule that was evaluated and not removed since, by name."""
    rows = connection.execute(select(*(rule.c[name] for name in KnownRule._fields)))
    return {row.rule: KnownRule(*row) for row in rows}


def last_seal_id(connection: Connection) -> int:
    """The last seal; 0: there is none."""
    return int(connection.execute(select(func.coalesce(func.max(run_seal.c.id), 0))).scalar_one())


def something_written_since(connection: Connection, seal_id: int) -> bool:
    """Whether a run that was sealed after that seal wrote anything that a rule may look at."""
    changed = or_(
        sync_run.c.changed + sync_run.c.held + sync_run.c.failed + sync_run.c.stale > 0,
        sync_run.c.origin.in_(("approval", "maintenance")),
        exists().where(org_event.c.run_id == sync_run.c.id),
    )
    sealed = run_seal.join(sync_run, sync_run.c.id == run_seal.c.run_id)
    found = select(run_seal.c.id).select_from(sealed).where(run_seal.c.id > seal_id, changed).limit(1)
    return connection.execute(found).first() is not None


def open_findings(connection: Connection, name: str) -> dict[str, str]:
    """What a rule found last, and nobody has mended since: rows by key."""
    mine = select(finding.c.key, finding.c.row).where(finding.c.rule == name, finding.c.until.is_(None))
    return {each.key: each.row for each in connection.execute(mine)}


def write_evaluation(connection: Connection, made: Evaluation) -> Written | None:
    """Write what an evaluation found, or that it failed; None if another came first."""
    known = _locked(connection, made)
    if known is None:
        return None
    if made.error is not None:
        _update(connection, made, failing_since=known.failing_since or made.at, error=made.error)
        return Written(0, 0)
    changes = compared(open_findings(connection, made.rule), made.found)
    new = [(made.rule, key, row, made.severity, made.title, made.at, made.run_id) for key, row in changes.begun.items()]
    insert_rows(connection, finding, _COLUMNS, new)
    of_mine = update(finding).where(finding.c.rule == made.rule, finding.c.until.is_(None))
    updated = [{"its_key": key, "its_row": row} for key, row in changes.updated.items()]
    execute_many(
        connection, of_mine.where(finding.c.key == bindparam("its_key")).values(row=bindparam("its_row")), updated
    )
    ended_by: EndedBy = "mended" if known.text == made.text else "rule_changed"
    ending = _Ending(made.at, made.run_id, ended_by)
    notices = list(_notices(connection, made.rule, changes.begun, changes.ended, ending))
    end = of_mine.where(finding.c.key == bindparam("its_key")).values(_end(ending))
    execute_many(connection, end, [{"its_key": key} for key in changes.ended])
    if (known.title, known.severity) != (made.title, made.severity):
        connection.execute(of_mine.values(title=made.title, severity=made.severity))
    _update(connection, made, failing_since=None, error=None)
    webhooks.note(connection, notices, made.at)
    return Written(len(new), len(changes.ended))


def _locked(connection: Connection, made: Evaluation) -> KnownRule | None:
    """The rule's row, locked, if this evaluation follows the last one."""
    named = {"rule": made.rule, "title": made.title, "severity": made.severity, "text": made.text}
    connection.execute(insert_into(connection, rule).values(named).on_conflict_do_nothing())
    mine = select(*(rule.c[name] for name in KnownRule._fields)).where(rule.c.rule == made.rule)
    known = KnownRule(*connection.execute(mine.with_for_update()).one())
    return known if known.evaluated_at == made.after else None


def _update(connection: Connection, made: Evaluation, **more: Any) -> None:
    said = {"title": made.title, "severity": made.severity, "text": made.text, "evaluated_at": made.at}
    said |= {"seal_id": made.seal_id, "took_ms": made.took_ms}
    connection.execute(update(rule).where(rule.c.rule == made.rule).values(**said, **more))


class _Ending(NamedTuple):
    """What ends findings, and when."""

    until: dt.datetime
    until_run_id: int | None
    ended_by: EndedBy


def _end(ending: _Ending) -> dict[str, Any]:
    """What ends a finding; where a clock went back, as soon as it had begun."""
    not_before = case((finding.c.since > ending.until, finding.c.since), else_=ending.until)
    return {**ending._asdict(), "until": not_before}


def _notices(
    connection: Connection, name: str, begun: Collection[str], ended: Collection[str], ending: _Ending
) -> Iterator[NewNotice]:
    """What webhooks are told of the findings with these keys, which are open still: first of those that began."""
    if not (begun or ended) or not webhooks.has_webhooks(connection):
        return
    mine = select(finding).where(finding.c.rule == name, finding.c.until.is_(None)).order_by(finding.c.id)
    rows = [row._asdict() for row in connection.execute(mine)]
    new, gone = set(begun), set(ended)
    yield from (_notice("finding.began", row, row["since"]) for row in rows if row["key"] in new)
    for row in rows:
        if row["key"] in gone:
            until = max(row["since"], ending.until)
            yield _notice("finding.ended", {**row, **ending._asdict(), "until": until}, until)


def _notice(kind: str, row: Mapping[str, Any], at: dt.datetime) -> NewNotice:
    found = as_object(row["row"])
    org_id = found.get("org_id")
    data = {**row, "key": as_object(row["key"]), "row": found}
    return NewNotice(kind, at, row["rule"], data, org_id if isinstance(org_id, str) else None)


def note_unchanged(connection: Connection, evaluations: Sequence[Evaluation]) -> None:
    """Note that rules were evaluated, and found what they had found before."""
    mine = (
        rule.c.rule == bindparam("its_name"),
        rule.c.evaluated_at == bindparam("after", type_=rule.c.evaluated_at.type),
    )
    noted = (
        update(rule)
        .where(*mine)
        .values(evaluated_at=bindparam("at"), seal_id=bindparam("seal"), took_ms=bindparam("ms"))
    )
    rows = [
        {"its_name": each.rule, "after": each.after, "at": each.at, "seal": each.seal_id, "ms": each.took_ms}
        for each in evaluations
    ]
    execute_many(connection, noted, rows)


def remove_rules(connection: Connection, kept: Collection[str], now: dt.datetime) -> list[str]:
    """Forget the rules that have no file any more, and end what they had found; return their names."""
    gone = sorted(set(connection.execute(select(rule.c.rule).with_for_update()).scalars()) - set(kept))
    run_id = connection.execute(select(run_seal.c.run_id).order_by(run_seal.c.id.desc()).limit(1)).scalar()
    ending, notices = _Ending(now, run_id, "rule_removed"), list[NewNotice]()
    for name in gone:
        notices += _notices(connection, name, (), open_findings(connection, name), ending)
        mine = update(finding).where(finding.c.rule == name, finding.c.until.is_(None))
        connection.execute(mine.values(_end(ending)))
        connection.execute(delete(rule).where(rule.c.rule == name))
    webhooks.note(connection, notices, now)
    return gone
