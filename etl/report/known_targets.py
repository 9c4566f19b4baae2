"""Which targets the database knows, and since when each was observed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Engine, and_, select

from etl.database import reading
from etl.schema import change_set, target


class KnownTarget(NamedTuple):
    """A target of the database; ``first_observed_at`` is None where it never was."""

    org_id: str
    user_id: str
    expression: str
    first_observed_at: dt.datetime | None
    retired_at: dt.datetime | None


def known_targets(engine: Engine) -> Iterator[KnownTarget]:
    """All of them, by organisation, user and expression. Raises DatabaseError where the database refuses."""
    key = (target.c.org_id, target.c.user_id, target.c.expression)
    first = and_(change_set.c.target_id == target.c.id, change_set.c.version == 1)
    found = select(*key, change_set.c.observed_at, target.c.retired_at).join_from(
        target, change_set, first, isouter=True
    )
    with reading(engine) as connection:
        for row in connection.execution_options(yield_per=2000).execute(found.order_by(*key)):
            yield KnownTarget(*row)
