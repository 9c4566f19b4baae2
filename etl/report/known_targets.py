"""The targets that the database knows, and since when each was observed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Select, and_, select

from etl.database import reading
from etl.domain.model import Target
from etl.schema import TARGET_KEY, change_set, target


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
