"""The targets that the database knows, and what was known of them at a moment."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Select, and_, bindparam, column, select, text

from etl.database import reading
from etl.domain.model import Target
from etl.report.rows import sql_columns
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
    columns = (target.c.id, *TARGET_KEY, target.c.version, change_set.c.observed_at, target.c.retired_at)
    return select(*columns).join_from(target, change_set, first, isouter=True).order_by(*TARGET_KEY)


_NAMES_COMPARED: Final = 10_000
_OBSERVED_TARGETS: Final = """
    SELECT count(*) AS targets, count(CASE WHEN t.expression <> '' THEN 1 END) AS searches,
           count(CASE WHEN EXISTS (SELECT 1 FROM change_set s WHERE s.target_id = t.id AND s.observed_at <= :at)
                      THEN 1 END) AS observed,
           count(CASE WHEN EXISTS (SELECT 1 FROM change_set s WHERE s.target_id = t.id AND s.observed_at <= :at)
                       AND (SELECT m.kind FROM target_membership m
                            WHERE m.target_id = t.id AND m.schedule IS NULL AND m.at <= :at
                            ORDER BY m.at DESC, m.id DESC LIMIT 1) = 'retired' THEN 1 END) AS retired,
           min((SELECT min(s.observed_at) FROM change_set s WHERE s.target_id = t.id)) AS first_at,
           max(coalesce((SELECT max(o.last_at) FROM observation o WHERE o.target_id = t.id),
                        (SELECT max(s.observed_at) FROM change_set s WHERE s.target_id = t.id))) AS last_at
      FROM target t"""
_NAMES: Final = {
    "org_id": "SELECT DISTINCT org_id FROM target ORDER BY org_id LIMIT :most",
    "user_id": "SELECT DISTINCT user_id FROM target ORDER BY user_id LIMIT :most",
}


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


class UnknownName(NamedTuple):
    """A name that no target has."""

    what: str
    """``org_id`` or ``user_id``."""
    name: str
    similar: str | None
    """A similar name that a target has."""


def observed_targets(
    engine: Engine, at: dt.datetime, *, org: str | None = None, user: str | None = None
) -> ObservedTargets:
    """What was known at ``at`` (aware) of an organisation, a user, or all targets. Raises DatabaseError."""
    with reading(engine) as connection:
        return _observed_targets(connection, at, org_id=org, user_id=user)


def unknown_name(engine: Engine, *, org: str | None = None, user: str | None = None) -> UnknownName | None:
    """The first of the names that no target has, also if the user is only in another organisation. Raises
    DatabaseError."""
    now = dt.datetime.max.replace(tzinfo=dt.UTC)
    with reading(engine) as connection:
        if org is not None and not _observed_targets(connection, now, org_id=org).targets:
            return _unknown_name(connection, "org_id", org)
        if user is not None and not _observed_targets(connection, now, org_id=org, user_id=user).targets:
            return _unknown_name(connection, "user_id", user)
    return None


def _observed_targets(connection: Connection, at: dt.datetime, **names: str | None) -> ObservedTargets:
    given = {name: value for name, value in names.items() if value is not None}
    conditions = " AND ".join(f"t.{name} = :{name}" for name in given)
    sql = f"{_OBSERVED_TARGETS} WHERE {conditions}" if given else _OBSERVED_TARGETS
    statement = text(sql).bindparams(bindparam("at", type_=UtcTime())).columns(*sql_columns(ObservedTargets))
    return ObservedTargets._make(connection.execute(statement, {"at": at, **given}).one())


def _unknown_name(connection: Connection, what: str, name: str) -> UnknownName:
    known: list[Any] = list(
        connection.execute(text(_NAMES[what]).columns(column(what)), {"most": _NAMES_COMPARED}).scalars()
    )
    return UnknownName(what, name, next(iter(get_close_matches(name, known, 1)), None))
