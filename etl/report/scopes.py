"""Which targets a run was to ask: those in its scope, by the memberships that it saw."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, text

from etl.database import STREAMED
from etl.domain import seal
from etl.domain.chain import encode
from etl.domain.model import Target
from etl.schema import DIGEST_OF_NONE, TARGET_KEY, target


class ScopeTargets(NamedTuple):
    """The targets that a run was to ask."""

    digest: str
    target_ids: frozenset[int]
    org_ids: frozenset[str] = frozenset()
    """Their organisations."""


class Scopes:
    """Remembers the targets of schedules' scopes, because most runs have the same as the run before."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, ScopeTargets]] = {}

    def targets_of(self, connection: Connection, scope_text: str) -> ScopeTargets:
        """The targets that a run with this scope was to ask. Raises ValueError, LookupError or TypeError if it is
        not a scope."""
        scope = json.loads(scope_text)
        seen = scope.pop("membership_id")
        if scope.keys() == {"targets"}:
            return _by_name(connection, [Target(*each) for each in scope["targets"]])
        key = encode(scope)
        known = self._known.get(key)
        if known is None or known[0] != seen:
            known = self._known[key] = (seen, _by_membership(connection, scope, seen))
        return known[1]


_TARGETS_OF: Final = """
    SELECT DISTINCT t.id, t.org_id, t.user_id, t.expression
    FROM target_membership m JOIN target t ON t.id = m.target_id
    WHERE m.schedule IN :schedules AND m.kind = 'joined' AND m.id <= :seen
      AND m.id = (SELECT max(l.id) FROM target_membership l
                  WHERE l.schedule = m.schedule AND l.target_id = m.target_id AND l.id <= :seen)
      {only}
    ORDER BY t.org_id, t.user_id, t.expression
"""


def _by_membership(connection: Connection, scope: Mapping[str, Any], seen: int) -> ScopeTargets:
    schedules, given = scope["schedules"], {"seen": seen}
    if not schedules:
        return ScopeTargets(DIGEST_OF_NONE, frozenset())
    only = ""
    for name in ("org_id", "user_id"):
        if scope[name] is not None:
            only, given[name] = f"{only} AND t.{name} = :{name}", scope[name]
    query = text(_TARGETS_OF.format(only=only)).bindparams(bindparam("schedules", expanding=True))
    with connection.execute(query, {**given, "schedules": schedules}, execution_options=STREAMED) as rows:
        return _scope_targets(rows)


def _by_name(connection: Connection, targets: Sequence[Target]) -> ScopeTargets:
    ids = set[int]()
    for each in targets:
        mine = zip(TARGET_KEY, each, strict=True)
        ids |= set(
            connection.execute(select(target.c.id).where(*(column == value for column, value in mine))).scalars()
        )
    return ScopeTargets(seal.targets_digest(targets), frozenset(ids), frozenset(each.org_id for each in targets))


def _scope_targets(rows: Iterable[Row[Any]]) -> ScopeTargets:
    ids, org_ids = list[int](), set[str]()

    def keys() -> Iterator[bytes]:
        for row in rows:
            cells: list[Any] = list(row)
            ids.append(cells[0])
            org_ids.add(cells[1])
            yield encode(cells[1:])

    digest = seal.digest_of(keys())
    return ScopeTargets(digest, frozenset(ids), frozenset(org_ids))
