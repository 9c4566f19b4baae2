"""The targets: which the database knows, what was known of them at a moment, and one with its list and its past."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sqlalchemy import BindParameter, Connection, Engine, Select, and_, bindparam, or_, select, text

from etl.database import reading
from etl.domain.kinds import CHANGE_KINDS, DELTA_KINDS
from etl.domain.model import Target
from etl.report.asof import cheaper_way, flows_statement, targets_statement
from etl.report.listings import FLOWS
from etl.report.names import WHOLE, contains, with_ids
from etl.report.reading import sql
from etl.report.rows import (
    TargetAsOf,
    TargetHealth,
    sql_columns,
    view,
)
from etl.schema import TARGET_KEY, UtcTime, change_set, target


class KnownTarget(NamedTuple):
    """A target that was ever configured; ``first_observed_at`` is None where it never was observed."""

    id: int
    org_id: str
    user_id: str
    expression: str
    version: int
    first_observed_at: dt.datetime | None
    retired_at: dt.datetime | None
    asked_as: str | None
    """Of a directory: the user as whom it is asked for."""

    @property
    def target(self) -> Target:
        return Target(self.org_id, self.user_id, self.expression)


def known_targets(engine: Engine) -> Iterator[KnownTarget]:
    """All of them, by organisation, user and expression. Raises DatabaseError where the database refuses."""
    with reading(engine) as connection:
        for row in connection.execution_options(yield_per=2000).execute(_known()):
            yield KnownTarget(*row)


def targets_of_user(connection: Connection, org: str, user: str) -> list[KnownTarget]:
    """The targets of a user, the one without a search expression first."""
    mine = _known().where(target.c.org_id == org, target.c.user_id == user)
    return [KnownTarget(*row) for row in connection.execute(mine)]


def _known() -> Select[Any]:
    first = and_(change_set.c.target_id == target.c.id, change_set.c.version == 1)
    columns = (target.c.version, change_set.c.observed_at, target.c.retired_at, target.c.asked_as)
    return (
        select(target.c.id, *TARGET_KEY, *columns)
        .join_from(target, change_set, first, isouter=True)
        .order_by(*TARGET_KEY)
    )


_NAMES_COMPARED: Final = 10_000


class ObservedTargets(NamedTuple):
    """What was known about some targets at a moment."""

    targets: int
    """How many there are, including retired ones."""
    searches: int
    """How many of them have a search expression."""
    observed: int
    """How many had been observed by then."""
    retired: int
    """How many of them were retired then."""
    first_at: dt.datetime | None
    """The first observation of any of them."""
    last_at: dt.datetime | None
    """The last observation that is recorded now."""


WHOLE_LISTS: Final = "t.expression = '' AND t.user_id <> ''"
"""Those that count in an organisation: no searches, and no directory."""


def observed_targets(
    engine: Engine, at: dt.datetime, *, org: str | None = None, user: str | None = None, whole_lists: bool = False
) -> ObservedTargets:
    """What was known at ``at`` (aware) of an organisation, a user, or all targets. Raises DatabaseError.

    ``whole_lists``: whether only those count that count in an organisation.
    """
    given = {name: value for name, value in (("org_id", org), ("user_id", user)) if value is not None}
    chosen = " AND ".join([f"t.{name} = :{name}" for name in given] + [WHOLE_LISTS] * whole_lists) or "TRUE"
    statement = text(sql("observed_targets").format(chosen=chosen)).bindparams(bindparam("at", at, UtcTime))
    with reading(engine) as connection:
        found = connection.execute(statement.columns(*sql_columns(ObservedTargets)), given)
        return ObservedTargets._make(found.one())


def unknown_name(engine: Engine, *, org: str | None = None, user: str | None = None) -> str | None:
    """A sentence about the first of the names that no target has, also if the user is only in another organisation.
    Raises DatabaseError."""
    known = select(target.c.id).limit(1)
    with reading(engine) as connection:
        for what, column, name in (("organisation", target.c.org_id, org), ("user", target.c.user_id, user)):
            if name is None:
                continue
            known = known.where(column == name)
            if connection.execute(known).first() is None:
                if not name:
                    return "No directory is asked for" + (" in this organisation." if org else ".")
                names = connection.execute(select(column).distinct().order_by(column).limit(_NAMES_COMPARED)).scalars()
                similar = next(iter(get_close_matches(name, list(names), 1)), None)
                if similar == name:
                    return f"Unknown {what}, in this organisation: {name!r}."
                return f"Unknown {what}: {name!r}." + (f" Did you mean {similar!r}?" if similar else "")
    return None


# ------------------------------------------------------------------------------------------------------ one of them


def health_of(connection: Connection, known: Target) -> TargetHealth:
    """The current health of a target."""
    health = view("target_health", TargetHealth)
    mine = (health.c[name] == value for name, value in known._asdict().items())
    return TargetHealth(*connection.execute(select(health).where(*mine)).one())


# ------------------------------------------------------------------------------------------------------- the list


def listing(
    connection: Connection, known: Target, at: dt.datetime | None = None, *, find: str = "", cycle: str = ""
) -> Select[Any]:
    """``ListWorkflowAsOf``, by flow_id: the list at ``at``; or ``ListWorkflow``: the list now."""
    dialect = connection.dialect.name
    if at is None:
        whose: dict[str, Any] = {"org": WHOLE + known.org_id, "user": WHOLE + known.user_id}
        chosen = FLOWS.select(dialect, **whose, find=find, cycle=cycle)
        return chosen.where(chosen.selected_columns.expression == known.expression)
    then = flows_statement(cheaper_way(connection, at), at, known._asdict()).subquery("then_listed")
    found = [then.c.cycle == cycle] if cycle else []
    found += [or_(*(contains(dialect, then.c[name], find) for name in ("flow_id", "flow_name")))] if find else []
    return select(then).where(*found).order_by(then.c.flow_id)


# ------------------------------------------------------------------------------------------------------ its past


def versions(target_id: int, until: dt.datetime | None) -> Select[Any]:
    """The versions of a target, the latest first."""
    own = change_set.c.target_id == target_id
    chosen = own if until is None else and_(own, change_set.c.observed_at <= until)
    counts = ("flow_count", *CHANGE_KINDS)
    names = ("version", "kind", "observed_at", "last_unchanged_at", *counts, "run_id", "approved_by", "hash")
    return select(*(change_set.c[name] for name in names)).where(chosen).order_by(change_set.c.version.desc())


_TICKS: Final = (
    text(sql("ticks").format(changes=" + ".join(DELTA_KINDS)))
    .bindparams(bindparam("until", type_=UtcTime))
    .columns(started_at=UtcTime, ended_at=UtcTime)
)


def ticks(
    connection: Connection, target_id: int, until: dt.datetime, most: int, coverage_gap: dt.timedelta
) -> list[dict[str, Any]]:
    """The latest runs that concern a target, the oldest first, each with its verdict, or ``unseen`` where it says
    nothing about the target. ``silent``: nobody had looked for longer than the coverage gap before the run."""
    runs = connection.execute(_TICKS, {"id": target_id, "until": until, "most": most})
    return [
        {**run._mapping, "silent": before is not None and run.started_at - before.ended_at > coverage_gap}
        for before, run in pairwise([None, *runs])
        if run is not None
    ]


# ------------------------------------------------------------------------------------------- at a moment


def coverage_then(dialect: str, at: dt.datetime, *, org: str = "", user: str = "") -> Select[Any]:
    """``TargetAsOf`` of the targets whose ids contain these parts."""
    then = targets_statement(at, {}).subquery("targets_then")
    order = (then.c.org_id, then.c.user_id, then.c.expression)
    return with_ids(dialect, select(then), org, user).order_by(*order)


def coverage_of(connection: Connection, targets: Sequence[Target], at: dt.datetime | None) -> dict[Target, TargetAsOf]:
    """How well the lists of these targets at ``at`` are known, if given; those not observed by then are left out."""
    if at is None or not targets:
        return {}
    keys: BindParameter[Any] = bindparam("chosen", [tuple(each) for each in targets], expanding=True)
    rows = connection.execute(targets_statement(at, {}, "(t.org_id, t.user_id, t.expression) IN :chosen", keys))
    return {Target(*row[:3]): TargetAsOf(*row) for row in rows if row.observed_before}
