"""How a run ends: it is closed, judged and sealed, each in a transaction of its own; in one where nothing is to judge.

| step | does | afterwards |
|---|---|---|
| close | sets `closed_at`, under the run's lock | nobody writes for the run any more: RunClosed |
| judge | writes what follows from it in its organisations (``story``), while the run is not sealed | |
| seal | writes status and sums, digests what the run wrote, and seals it under the lock on the trail's head | |

Each step can be repeated: if a process died after closing a run, the next one that finds it seals it.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    Select,
    Table,
    bindparam,
    case,
    exists,
    func,
    insert,
    select,
    text,
    update,
)

from etl.database import STREAMED
from etl.domain import seal
from etl.domain.chain import encode
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import RunStatus, latest_of
from etl.domain.seal import signed_bytes
from etl.errors import RunClosed
from etl.schema import (
    DIGEST_OF_NONE,
    TARGET_KEY,
    UtcTime,
    acknowledgement,
    change_set,
    metadata,
    observation,
    run_seal,
    seal_timestamp,
    sync_issue,
    sync_run,
    target,
    trail,
)
from etl.store.bulk import insert_new
from etl.store.runs import database_now

Sign = Callable[[bytes], tuple[str, str]]
"""Returns the signature over some bytes, in base64, and the key's id."""
_MAKE_TRAIL: Final = "SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.trail'))"
_RUN_ID: Final[BindParameter[int]] = bindparam("run_id")


class RecountedRun(NamedTuple):
    """What a run has written, as far as its rows tell."""

    sums: Mapping[str, int]
    """Counted from its rows; ``unchanged`` is 0, because unchanged targets leave no row."""
    latest_at: dt.datetime | None
    """The latest recorded time: the run cannot have ended before."""


# ----------------------------------------------------------------------------------------------------------- closing


def require_open(connection: Connection, run_id: int) -> None:
    """Keep the run from being closed until this transaction ends. Raises RunClosed if it is closed already."""
    row = connection.execute(_OPEN, {"run_id": run_id}).first()
    if row is None or row.closed_at is not None:
        raise RunClosed(run_id)


_OPEN: Final = select(sync_run.c.closed_at).where(sync_run.c.id == _RUN_ID).with_for_update(read=True, key_share=True)


def close(connection: Connection, run_id: int, now: dt.datetime) -> bool:
    """Close a run once current writers have committed: no further writes for it. False if another process closed it."""
    mine = (sync_run.c.id == run_id, sync_run.c.closed_at.is_(None) | (sync_run.c.closed_at == now))
    locked = select(sync_run.c.id).where(*mine).with_for_update()
    return connection.execute(update(sync_run).where(sync_run.c.id.in_(locked)).values(closed_at=now)).rowcount == 1


def require_unsealed(connection: Connection, run_id: int) -> None:
    """Keep a run from being sealed until this transaction ends. Raises RunClosed if it is sealed already."""
    if connection.execute(_UNSEALED, {"run_id": run_id}).scalar() != "running":
        raise RunClosed(run_id)


_UNSEALED: Final = select(sync_run.c.status).where(sync_run.c.id == _RUN_ID).with_for_update(read=True)


# --------------------------------------------------------------------------------------------------------- digesting


class _Source(NamedTuple):
    """A table whose rows of a run go into a digest, one JSON array each, in the order of the rules."""

    has: Any
    """Whether the run has any; one query for all sources."""
    rows: Select[Any]


def _source(table: Table, columns: Sequence[str], *, by_target: Column[Any] | None = None) -> _Source:
    """Rows in the order of their ids, or of their targets and a column; what a table lacks its target has."""
    rows = select(*(table.c[name] if name in table.c else target.c[name] for name in columns)).select_from(table)
    if "target_id" in table.c:
        rows = rows.join(target, target.c.id == table.c.target_id)
    order = (*table.primary_key,) if by_target is None else (*TARGET_KEY, by_target)
    of_run = table.c.run_id == _RUN_ID
    return _Source(exists().where(of_run), rows.where(of_run).order_by(*order))


_CHANGE_SETS: Final = _source(change_set, ["hash"], by_target=change_set.c.version)
_ISSUES: Final = _source(sync_issue, seal.ISSUE, by_target=sync_issue.c.id)
_EVENTS: Final = tuple(_source(metadata.tables[name], columns) for name, columns in seal.EVENTS.items())
_SOURCES: Final = (_CHANGE_SETS, _ISSUES, *_EVENTS)
_TEXTS_OF_JSON: Final = ("flow_ids", "doubted")

_LATEST: Final = (
    select(func.max(change_set.c.observed_at, type_=UtcTime())).where(change_set.c.run_id == _RUN_ID).scalar_subquery()
)
_OPEN_SPANS: Final = (
    select(func.max(observation.c.last_at, type_=UtcTime()))
    .join(target, target.c.observation_id == observation.c.id)
    .scalar_subquery()
)
_HAS: Final = select(*(source.has.label(f"has_{n}") for n, source in enumerate(_SOURCES)))


def recount(connection: Connection, run_id: int) -> RecountedRun:
    """What a run has written: of one whose process has died, nothing else is known."""
    times = connection.execute(select(_LATEST, _OPEN_SPANS), {"run_id": run_id}).one()
    return RecountedRun(_counted(connection, run_id), latest_of(*times))


def _digests(connection: Connection, run_id: int, targets_digest: str) -> seal.Digests:
    found = connection.execute(_HAS, {"run_id": run_id}).one()._mapping
    has = {source: found[f"has_{n}"] for n, source in enumerate(_SOURCES)}

    def rows(source: _Source) -> Iterator[Sequence[Any]]:
        if has[source]:
            yield from _rows(connection, source.rows, run_id)

    return seal.Digests(
        targets=targets_digest,
        change_sets=seal.digest_of(encode(own_hash) for *_, own_hash in rows(_CHANGE_SETS)),
        issues=seal.digest_of(map(seal.encoded_row, rows(_ISSUES))),
        events=seal.digest_of_lists(map(seal.encoded_row, rows(source)) for source in _EVENTS),
        acknowledgements=DIGEST_OF_NONE,
    )


def _rows(connection: Connection, query: Select[Any], run_id: int) -> Iterator[Sequence[Any]]:
    with connection.execute(query, {"run_id": run_id}, execution_options=STREAMED) as found:
        parsed = [name in _TEXTS_OF_JSON for name in found.keys()]  # noqa: SIM118 - a result is no mapping
        for row in found:
            yield [json.loads(v) if p else v for v, p in zip(row, parsed, strict=True)] if any(parsed) else row


def _counted(connection: Connection, run_id: int) -> dict[str, int]:
    """The sums of a run from its rows: a version whose target has no issue is ``changed``."""
    issue = exists().where(sync_issue.c.run_id == run_id, sync_issue.c.target_id == change_set.c.target_id)
    of_run = change_set.c.run_id == run_id
    sums = (func.coalesce(func.sum(change_set.c[kind]), 0).label(kind) for kind in CHANGE_KINDS)
    changes = {name: int(n) for name, n in connection.execute(select(*sums).where(of_run)).one()._mapping.items()}
    by_verdict = select(sync_issue.c.verdict, func.count()).where(sync_issue.c.run_id == run_id)
    verdicts = {verdict: n for verdict, n in connection.execute(by_verdict.group_by(sync_issue.c.verdict))}  # noqa: C416
    changed = connection.execute(select(func.count()).where(of_run, ~issue)).scalar_one()
    return {"changed": changed, "unchanged": 0, "held": 0, "failed": 0, "stale": 0, **verdicts, **changes}


# ----------------------------------------------------------------------------------------------------------- sealing


class Head(NamedTuple):
    """The one row of ``trail`` that is written; ``head`` is the parent of the next seal."""

    id: int
    trail_id: str
    last_seal: int
    head: str
    sealed_at: dt.datetime
    acknowledged_at: dt.datetime | None
    """The latest acknowledgement, if one was made since the last seal."""


_KNOWN: Final = ("schedule", "origin", "scheduled_for", "missed_slots", "started_at", "finished_at")
_RUN_COLUMNS: Final = [sync_run.c[name] for name in ("targets_digest", *_KNOWN, *seal.SUMS)]
_HEAD: Final = select(*(trail.c[name] for name in Head._fields)).order_by(trail.c.id.desc()).limit(1).with_for_update()
_SEALED_BEFORE: Final = exists().where(
    run_seal.c.id == bindparam("last_seal"), run_seal.c.sealed_at >= acknowledgement.c.made_at
)
_ACKNOWLEDGED: Final = (
    select(*(acknowledgement.c[name] for name in seal.ACKNOWLEDGEMENT))
    .where(~_SEALED_BEFORE)
    .order_by(acknowledgement.c.id)
)
"""Those since the last seal. Who makes one does so under the lock on the head, with a later time than that seal's."""


def end(
    connection: Connection,
    run_id: int,
    status: RunStatus,
    sums: Mapping[str, int],
    now: dt.datetime,
    sign: Sign | None = None,
) -> bool:
    """Write how a closed run ended, and its seal; False if it has ended with another status."""
    finished_at = case((sync_run.c.started_at > now, sync_run.c.started_at), else_=now)
    ended = update(sync_run).where(sync_run.c.id == run_id, sync_run.c.status == "running")
    values = {"status": status, "finished_at": finished_at, "heartbeat_at": database_now(connection), **sums}
    row = connection.execute(ended.values(values).returning(*_RUN_COLUMNS)).first()
    if row is None:
        return is_sealed(connection, run_id, status)
    targets_digest, *known = row[: len(_KNOWN) + 1]
    facts = dict(zip(_KNOWN, known, strict=True))
    run = seal.SealedRun(run_id=run_id, status=status, **facts, sums=row[len(_KNOWN) + 1 :])
    _seal(connection, run, _digests(connection, run_id, targets_digest), now, sign)
    return True


def is_sealed(connection: Connection, run_id: int, status: RunStatus) -> bool:
    """Whether the run has this status and a seal."""
    ended = select(run_seal.c.id).join(sync_run, sync_run.c.id == run_seal.c.run_id)
    return connection.execute(ended.where(sync_run.c.id == run_id, sync_run.c.status == status)).first() is not None


def _seal(
    connection: Connection, run: seal.SealedRun, digests: seal.Digests, now: dt.datetime, sign: Sign | None
) -> None:
    head = locked_head(connection, now)
    number, sealed_at = head.last_seal + 1, max(now, run.finished_at, head.sealed_at)
    if head.acknowledged_at is not None:
        sealed_at = max(sealed_at, head.acknowledged_at)
        made = connection.execute(_ACKNOWLEDGED, {"last_seal": head.last_seal})
        digests = msgspec.structs.replace(digests, acknowledgements=seal.acknowledgements_digest(made))
    own = seal.seal_hash(head.head, head.trail_id, number, run, digests, sealed_at)
    signature, key_id = sign(seal.signed_bytes(head.trail_id, number, own)) if sign else (None, None)
    row = {
        "id": number,
        "format": seal.FORMAT,
        "run_id": run.run_id,
        "parent": head.head,
        "seal": own,
        "sealed_at": sealed_at,
        "signature": signature,
        "key_id": key_id,
        **{f"{name}_digest": getattr(digests, name) for name in seal.Digests.__struct_fields__},
    }
    connection.execute(insert(run_seal), row)
    advanced = update(trail).where(trail.c.id == head.id)
    connection.execute(advanced.values(last_seal=number, head=own, sealed_at=sealed_at, acknowledged_at=None))


def last_key_id(connection: Connection) -> str | None:
    """The key that the last seal is signed with; None where it is not signed, or there is none."""
    last = select(run_seal.c.key_id).order_by(run_seal.c.id.desc()).limit(1)
    key_id: str | None = connection.execute(last).scalar_one_or_none()
    return key_id


def locked_head(connection: Connection, now: dt.datetime) -> Head:
    """As ``stored_head``; whoever needs one first begins the trail of the database."""
    head = stored_head(connection)
    if head is None and connection.dialect.name == "postgresql":
        connection.execute(text(_MAKE_TRAIL))
        head = stored_head(connection)
    return head or begin_trail(connection, now)


def begin_trail(connection: Connection, now: dt.datetime, copied: Head | None = None) -> Head:
    """Begin a trail for a database: a new one, or one that continues what was ``copied``."""
    last, parent = (copied.last_seal, copied.head) if copied else (0, None)
    created_at = max(now, copied.sealed_at) if copied else now
    acknowledged_at = copied.acknowledged_at if copied else None
    trail_id = str(uuid.uuid4())
    head = seal.genesis(trail_id, created_at, parent)
    row = {
        "trail_id": trail_id,
        "created_at": created_at,
        "reason": "copied" if copied else "new",
        "first_seal": last + 1,
        "last_seal": last,
        "head": head,
        "sealed_at": created_at,
        "acknowledged_at": acknowledged_at,
    }
    number = connection.execute(insert(trail).values(row).returning(trail.c.id)).scalar_one()
    return Head(number, trail_id, last, head, created_at, acknowledged_at)


def stored_head(connection: Connection) -> Head | None:
    """The head, locked until the transaction ends; None if nothing was ever sealed."""
    row = connection.execute(_HEAD).first()
    return None if row is None else Head(*row)


class LastSeal(NamedTuple):
    """The last seal, and when a seal was last stamped."""

    seal_id: int
    message: bytes
    """The bytes that are stamped."""
    stamped_seal: int | None
    stamped_at: dt.datetime | None
    """By the authority's clock."""


_LAST: Final = (
    select(run_seal.c.id, run_seal.c.seal, trail.c.trail_id)
    .join_from(run_seal, trail, trail.c.first_seal <= run_seal.c.id)
    .order_by(run_seal.c.id.desc(), trail.c.id.desc())
    .limit(1)
)
_STAMPED: Final = (
    select(seal_timestamp.c.seal_id, seal_timestamp.c.stamped_at).order_by(seal_timestamp.c.seal_id.desc()).limit(1)
)


def last_seal(connection: Connection) -> LastSeal | None:
    """The last seal; None if no run has ended yet."""
    last = connection.execute(_LAST).first()
    if last is None:
        return None
    stamped = connection.execute(_STAMPED).first()
    message = signed_bytes(last.trail_id, last.id, last.seal)
    return LastSeal(last.id, message, *(stamped if stamped is not None else (None, None)))


def keep_timestamp(connection: Connection, seal_id: int, stamped_at: dt.datetime, token: bytes) -> bool:
    """Store a stamp; False if another process was faster."""
    row = {"seal_id": seal_id, "stamped_at": stamped_at, "token": token}
    insert_new(connection, seal_timestamp, [row])
    mine = select(seal_timestamp.c.token).where(seal_timestamp.c.seal_id == seal_id)
    found: bytes | None = connection.execute(mine).scalar()
    return found is not None and bytes(found) == token
