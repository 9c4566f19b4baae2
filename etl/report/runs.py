"""What runs were to ask, and what they wrote: versions, issues, the kept answers in their original bytes, and seals."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Select, bindparam, func, select, text

from etl.database import STREAMED
from etl.domain import answers
from etl.domain.chain import encode
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Target
from etl.domain.seal import digest_of, signed_bytes, targets_digest
from etl.report.reading import short_transaction, stream
from etl.schema import (
    DIGEST_OF_NONE,
    TARGET_KEY,
    answer,
    change_set,
    run_seal,
    seal_timestamp,
    sync_issue,
    sync_run,
    target,
    target_membership,
    trail,
)

# ------------------------------------------------------------------------------------------------------- their scopes


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
    ids, org_ids = list[int](), set[str]()

    def keys() -> Iterator[bytes]:
        with connection.execute(query, execution_options=STREAMED) as rows:
            for number, *key in rows:
                ids.append(number)
                org_ids.add(key[0])
                yield encode(key)

    digest = digest_of(keys())
    return ScopeTargets(digest, frozenset(ids), frozenset(org_ids))


def _by_name(connection: Connection, targets: Sequence[Target]) -> ScopeTargets:
    ids = set[int]()
    for each in targets:
        mine = (column == value for column, value in zip(TARGET_KEY, each, strict=True))
        ids |= set(connection.execute(select(target.c.id).where(*mine)).scalars())
    return ScopeTargets(targets_digest(targets), frozenset(ids), frozenset(each.org_id for each in targets))


# ------------------------------------------------------------------------------------------------ what they wrote


CAUSE_COLUMNS: Final = ("verdict", "error_code", "targets", "organisations", "example")


def causes(connection: Connection, run_id: int) -> Sequence[Any]:
    """The causes of a run's issues, the most frequent first."""
    return connection.execute(_CAUSES, {"run": run_id}).all()


_CAUSES: Final = text("""
    SELECT i.verdict, i.error_code, count(*) AS targets, count(DISTINCT t.org_id) AS organisations,
           min(i.message) AS example
      FROM sync_issue i JOIN target t ON t.id = i.target_id
     WHERE i.run_id = :run GROUP BY i.verdict, i.error_code ORDER BY 3 DESC, 1, 2
    """)


def issues(run_id: int) -> Select[Any]:
    """The issues of a run, by target."""
    names = ("verdict", "error_code", "message", "attempts", "missing")
    columns = (*TARGET_KEY, *(sync_issue.c[name] for name in names))
    chosen = select(*columns).join_from(sync_issue, target, target.c.id == sync_issue.c.target_id)
    return chosen.where(sync_issue.c.run_id == run_id).order_by(*TARGET_KEY, sync_issue.c.id)


def versions(run_id: int) -> Select[Any]:
    """The versions that a run wrote, by target."""
    names = ("version", "kind", "observed_at", "flow_count", *CHANGE_KINDS, "approved_by")
    columns = (*TARGET_KEY, *(change_set.c[name] for name in names))
    chosen = select(*columns).join_from(change_set, target, target.c.id == change_set.c.target_id)
    return chosen.where(change_set.c.run_id == run_id).order_by(*TARGET_KEY, change_set.c.version)


class VersionAnswer(NamedTuple):
    """The answer that made a version; ``kept`` is None if it is not archived."""

    version: int
    observed_at: dt.datetime
    data_hash: str
    kept: answers.KeptAnswer | None


def answer_of(engine: Engine, of: Target, version: int | None = None) -> VersionAnswer | None:
    """The answer that made a version of a target (default: the latest); None if there is no such version.

    Raises DatabaseError.
    """
    mine = zip(TARGET_KEY, of, strict=True)
    query = (
        select(
            *(change_set.c.version, change_set.c.observed_at, change_set.c.data_hash),
            *(answer.c.body, answer.c.length, answer.c.encoding),
        )
        .join_from(change_set, target, target.c.id == change_set.c.target_id)
        .outerjoin(answer, answer.c.data_hash == change_set.c.data_hash)
        .where(*(column == value for column, value in mine))
        .order_by(change_set.c.version.desc())
        .limit(1)
    )
    if version is not None:
        query = query.where(change_set.c.version == version)
    with short_transaction(engine) as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    number, observed_at, data_hash, body, length, encoding = row
    kept = None if body is None else answers.KeptAnswer(data_hash, bytes(body), length, encoding)
    return VersionAnswer(number, observed_at, data_hash, kept)


# --------------------------------------------------------------------------------------------------------- the seals


class Seal(NamedTuple):
    """A seal, and its run."""

    id: int
    run_id: int
    schedule: str | None
    origin: str
    status: str
    finished_at: dt.datetime
    sealed_at: dt.datetime
    trail_id: str
    seal: str
    key_id: str | None
    signature: str | None
    stamped_at: dt.datetime | None
    """When an authority stamped it, by the authority's clock."""

    @property
    def message(self) -> bytes:
        """The bytes that are signed and stamped."""
        return signed_bytes(self.trail_id, self.id, self.seal)


TRAIL_OF_SEAL: Final = func.coalesce(
    select(trail.c.trail_id)
    .where(trail.c.first_seal <= run_seal.c.id)
    .order_by(trail.c.id.desc())
    .limit(1)
    .correlate(run_seal)
    .scalar_subquery(),
    "",
)
"""The trail of a seal: the last one that had begun."""
_SEALS: Final[Select[Any]] = (
    select(
        *(run_seal.c.id, run_seal.c.run_id, sync_run.c.schedule, sync_run.c.origin, sync_run.c.status),
        *(sync_run.c.finished_at, run_seal.c.sealed_at, TRAIL_OF_SEAL, run_seal.c.seal),
        *(run_seal.c.key_id, run_seal.c.signature, seal_timestamp.c.stamped_at),
    )
    .join(sync_run, sync_run.c.id == run_seal.c.run_id)
    .outerjoin(seal_timestamp, seal_timestamp.c.seal_id == run_seal.c.id)
    .order_by(run_seal.c.id.desc())
)


def seals(engine: Engine, most: int | None) -> Iterator[Seal]:
    """The newest seals, the newest first. Raises DatabaseError if the database refuses."""
    return stream(engine, _SEALS.limit(most), Seal)


def seal(engine: Engine, number: int) -> Seal | None:
    """The seal with this number, if there is one. Raises DatabaseError if the database refuses."""
    with short_transaction(engine) as connection:
        row = connection.execute(_SEALS.where(run_seal.c.id == number)).first()
    return None if row is None else Seal(*row)


def token(engine: Engine, number: int) -> bytes | None:
    """The time stamp of a seal (a CMS ContentInfo in DER), if it has one."""
    with short_transaction(engine) as connection:
        found = connection.execute(select(seal_timestamp.c.token).where(seal_timestamp.c.seal_id == number)).scalar()
    return None if found is None else bytes(found)
