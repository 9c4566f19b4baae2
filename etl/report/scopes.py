"""Which targets a run was to ask: those in its scope, by the memberships that it saw."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from etl.database import STREAMED
from etl.domain import seal
from etl.domain.chain import encode
from etl.domain.model import Target
from etl.schema import DIGEST_OF_NONE, TARGET_KEY, target, target_membership


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


def _by_membership(connection: Connection, scope: Mapping[str, Any], seen: int) -> ScopeTargets:
    if not scope["schedules"]:
        return ScopeTargets(DIGEST_OF_NONE, frozenset())
    moved, later = target_membership, target_membership.alias("later")
    last = bindparam("seen", seen, moved.c.id.type)
    same = (later.c.schedule == moved.c.schedule, later.c.target_id == moved.c.target_id, later.c.id <= last)
    latest = select(func.max(later.c.id)).where(*same).scalar_subquery()
    only = (target.c[name] == scope[name] for name in ("org_id", "user_id") if scope[name] is not None)
    query = select(target.c.id, *TARGET_KEY).distinct().join_from(moved, target, target.c.id == moved.c.target_id)
    query = query.where(moved.c.schedule.in_(list(scope["schedules"])), moved.c.kind == "joined", moved.c.id <= last)
    query = query.where(moved.c.id == latest, *only).order_by(*TARGET_KEY)
    with connection.execute(query, execution_options=STREAMED) as rows:
        return _scope_targets(rows)


def _by_name(connection: Connection, targets: Sequence[Target]) -> ScopeTargets:
    ids = set[int]()
    for each in targets:
        mine = (column == value for column, value in zip(TARGET_KEY, each, strict=True))
        ids |= set(connection.execute(select(target.c.id).where(*mine)).scalars())
    return ScopeTargets(seal.targets_digest(targets), frozenset(ids), frozenset(each.org_id for each in targets))


def _scope_targets(rows: Iterable[Any]) -> ScopeTargets:
    ids, org_ids = list[int](), set[str]()

    def keys() -> Iterator[bytes]:
        for row in rows:
            cells: list[Any] = list(row)
            ids.append(cells[0])
            org_ids.add(cells[1])
            yield encode(cells[1:])

    digest = seal.digest_of(keys())
    return ScopeTargets(digest, frozenset(ids), frozenset(org_ids))
