"""The rows of a bundle, file by file, from the database: tuples in the order of the file's keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, func, select

from etl.audit.extent import GIVEN, Contents, Range, given
from etl.database import STREAMED
from etl.domain import seal
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, Span
from etl.schema import (
    CHANGE_KIND,
    TARGET_KEY,
    change_set,
    hold_event,
    observation,
    org_event,
    pruned_issues,
    run_seal,
    seal_timestamp,
    sync_issue,
    sync_run,
    target,
    target_membership,
    trail,
    workflow_change,
    workflow_detail,
)

Row = Sequence[Any]
Rows = Callable[[Connection, Contents], Iterator[Row]]


def trails(connection: Connection, _: Contents) -> Iterator[Row]:
    """This trail, after those that it was copied from."""
    columns = (trail.c.trail_id, trail.c.created_at, trail.c.first_seal)
    return _stream(connection, select(*columns).order_by(trail.c.id))


def seals(connection: Connection, _: Contents) -> Iterator[Row]:
    """Every seal."""
    names = ("id", "format", "run_id", "parent", "seal", "sealed_at")
    digests = tuple(f"{name}_digest" for name in seal.Digests.__struct_fields__)
    columns = (run_seal.c[name] for name in (*names, *digests, "signature", "key_id"))
    return _stream(connection, select(*columns).order_by(run_seal.c.id))


def runs(connection: Connection, contents: Contents) -> Iterator[Row]:
    """Every run that has ended, by its seal; one without a seal, which should not be, comes last."""
    names = ("id", "schedule", "origin", "scheduled_for", "missed", "status", "started_at", "finished_at", "scope")
    columns = [sync_run.c[name] for name in (*names, *seal.SUMS)]
    query = select(*columns).outerjoin(run_seal, run_seal.c.run_id == sync_run.c.id)
    query = query.where(run_seal.c.id.is_not(None) | (sync_run.c.status != "running"))
    query = query.order_by(run_seal.c.id.is_(None), run_seal.c.id, sync_run.c.id)
    place = names.index("scope")
    for row in _stream(connection, query):
        opened = contents.opened(row[0])
        scope = json.loads(row[place]) if opened == "whole" else {}  # it may name users of other organisations
        yield (*row[:place], scope, opened, *row[place + 1 :])


def hashes(connection: Connection, contents: Contents) -> Iterator[Row]:
    """The hashes of the versions of runs that are opened that way."""
    query = select(change_set.c.hash).join(target, target.c.id == change_set.c.target_id)
    for run_id in sorted(contents.hashes):
        of_run = query.where(change_set.c.run_id == run_id).order_by(*TARGET_KEY, change_set.c.version)
        yield run_id, list(connection.execute(of_run).scalars())


def memberships(connection: Connection, contents: Contents) -> Iterator[Row]:
    """All, from the first."""
    columns = (target_membership.c[name] for name in ("run_id", "schedule", "kind", "at", "coverage_gap_seconds"))
    query = _of_sealed(target_membership, target_membership.c.id, *TARGET_KEY, *columns)
    return _stream(connection, _of_org(query, contents).order_by(target_membership.c.id))


def holds(connection: Connection, contents: Contents) -> Iterator[Row]:
    """All, from the first."""
    columns = (hold_event.c[name] for name in ("run_id", "kind", "at", "flow_ids", "doubted", "data_hash"))
    query = _of_org(_of_sealed(hold_event, *TARGET_KEY, *columns), contents)
    for *before, flow_ids, doubted, data_hash in _stream(connection, query.order_by(hold_event.c.id)):
        yield (*before, json.loads(flow_ids), json.loads(doubted), data_hash)


def details(connection: Connection, contents: Contents) -> Iterator[Row]:
    """The details that the opened runs fetched."""
    names = seal.DetailEvent._fields
    query = select(*(workflow_detail.c[name] for name in names)).order_by(workflow_detail.c.id)
    return _of_whole(_stream(connection, query), contents, names.index("run_id"))


def org_events(connection: Connection, contents: Contents) -> Iterator[Row]:
    """The organisations' events from the opened runs."""
    names = seal.OrganisationEvent._fields
    query = select(*(org_event.c[name] for name in names)).order_by(org_event.c.event_id)
    return _of_whole(_stream(connection, query), contents, names.index("run_id"))


def pruned(connection: Connection, _: Contents) -> Iterator[Row]:
    """All."""
    columns = (pruned_issues.c.run_id, pruned_issues.c.pruned_run_id, pruned_issues.c.at)
    query = select(*columns).join(run_seal, run_seal.c.run_id == pruned_issues.c.run_id)
    return _stream(connection, query.order_by(pruned_issues.c.id))


def issues(connection: Connection, contents: Contents) -> Iterator[Row]:
    """The issues of the runs that are opened, by target."""
    names = ("run_id", "verdict", "error_code", "missing")
    columns = (sync_issue.c[name] for name in names)
    query = select(*TARGET_KEY, *columns).join_from(sync_issue, target, target.c.id == sync_issue.c.target_id)
    query = _of_org(query, contents).order_by(*TARGET_KEY, sync_issue.c.id)
    return _of_whole(_stream(connection, query), contents, len(TARGET_KEY))


def timestamps(connection: Connection, _: Contents) -> Iterator[Row]:
    """All."""
    return _stream(
        connection, select(seal_timestamp.c.seal_id, seal_timestamp.c.token).order_by(seal_timestamp.c.seal_id)
    )


# ---------------------------------------------------------------------------------------------------- by target


def openings(connection: Connection, contents: Contents) -> Iterator[Row]:
    """The list of each target whose versions do not begin with the first, by its first version here."""
    for chunk in contents.ranges.chunks():
        opening = [each for each in chunk if each.opens]
        listed = _lists(connection, opening) if opening else {}
        for each in opening:
            key = connection.execute(select(*TARGET_KEY).where(target.c.id == each.target_id)).one()
            yield (*key, each.first, listed.get(each.target_id, []))


def _lists(connection: Connection, ranges: Sequence[Range]) -> dict[int, list[list[Any]]]:
    """``[flow_id, flow_name, cycle, editable]`` of each workflow at the first version of each range, by flow_id."""
    own = GIVEN.select(connection.dialect.name).subquery("given").c
    of_flow = (change_set.c.target_id, workflow_change.c.flow_id)
    latest = (
        select(
            *(change_set.c.target_id, workflow_change.c.flow_id, workflow_change.c.new_name),
            *(workflow_change.c.new_cycle, workflow_change.c.new_editable, CHANGE_KIND.label("kind")),
            func.row_number().over(partition_by=of_flow, order_by=change_set.c.version.desc()).label("nth"),
        )
        .join_from(change_set, workflow_change, workflow_change.c.change_set_id == change_set.c.id)
        .where(change_set.c.target_id == own.target_id, change_set.c.version <= own.first)
        .subquery("latest")
    )
    columns = latest.c[:5]
    query = select(*columns).where(latest.c.nth == 1, latest.c.kind != "removed")
    found: dict[int, list[list[Any]]] = {}
    for target_id, *flow in connection.execute(query.order_by(*columns[:2]), given(connection, ranges)):
        found.setdefault(target_id, []).append(flow)
    return found


def change_sets(connection: Connection, contents: Contents) -> Iterator[Row]:
    """The versions."""
    names = (
        *("version", "format", "run_id", "kind", "observed_at", "last_unchanged_at", "flow_count", "state_digest"),
        *("approved_by", "approved_scope", "data_hash", "parent_hash", "hash", *CHANGE_KINDS),
    )
    query = select(*TARGET_KEY, *(change_set.c[name] for name in names)).join_from(
        target, change_set, change_set.c.target_id == target.c.id
    )
    return _by_target(connection, contents, query, change_set, change_set.c.version)


def changes(connection: Connection, contents: Contents) -> Iterator[Row]:
    """Their changes."""
    columns = (workflow_change.c[name] for name in Change.__struct_fields__)
    query = (
        select(*TARGET_KEY, change_set.c.version, *columns)
        .join_from(target, change_set, change_set.c.target_id == target.c.id)
        .join(workflow_change, workflow_change.c.change_set_id == change_set.c.id)
    )
    order = (change_set.c.version, workflow_change.c.flow_id, workflow_change.c.kind)
    return _by_target(connection, contents, query, change_set, *order)


def spans(connection: Connection, contents: Contents) -> Iterator[Row]:
    """Their spans, and those of the version before, which the first one's hash covers."""
    columns = (observation.c[name] for name in Span.__struct_fields__)
    query = select(*TARGET_KEY, observation.c.version, *columns).join_from(
        target, observation, observation.c.target_id == target.c.id
    )
    if contents.extent.until is not None:
        query = query.where(observation.c.first_at < contents.extent.until)
    return _by_target(
        connection, contents, query, observation, observation.c.version, observation.c.first_at, earlier=1
    )


def answers(connection: Connection, contents: Contents) -> Iterator[str]:
    """The hashes of the answers that made the versions, or in which holds were seen; may contain repetitions."""
    for chunk in contents.ranges.chunks():
        own = GIVEN.select(connection.dialect.name).subquery("given").c
        made = select(change_set.c.data_hash).where(
            change_set.c.target_id == own.target_id, change_set.c.version.between(own.first, own.last)
        )
        yield from connection.execute(made.distinct(), given(connection, chunk)).scalars()
    held = _of_org(_of_sealed(hold_event, hold_event.c.run_id, hold_event.c.data_hash), contents)
    for _, data_hash in _of_whole(_stream(connection, held.distinct()), contents, 0):
        yield data_hash


def _by_target(
    connection: Connection, contents: Contents, query: Select[Any], versions: Any, *order: Any, earlier: int = 0
) -> Iterator[Row]:
    own = GIVEN.select(connection.dialect.name).subquery("given").c
    inside = and_(target.c.id == own.target_id, versions.c.version.between(own.first - earlier, own.last))
    ordered = query.where(inside).order_by(*TARGET_KEY, *order)
    for chunk in contents.ranges.chunks():
        yield from _stream(connection, ordered, **given(connection, chunk))


def _of_sealed(table: Any, *columns: Any) -> Select[Any]:
    """Rows of a table that name a target and a run that is sealed."""
    query = select(*columns).join_from(table, target, target.c.id == table.c.target_id)
    return query.join(run_seal, run_seal.c.run_id == table.c.run_id)


def _of_org(query: Select[Any], contents: Contents) -> Select[Any]:
    org_id = contents.extent.org_id
    return query if org_id is None else query.where(target.c.org_id == org_id)


def _of_whole(rows: Iterator[Row], contents: Contents, place: int) -> Iterator[Row]:
    return (row for row in rows if row[place] in contents.whole)


def _stream(connection: Connection, query: Select[Any], **parameters: Any) -> Iterator[Row]:
    with connection.execute(query, parameters, execution_options=STREAMED) as found:
        yield from found


FILES: Final[dict[str, Rows]] = {
    "trails": trails,
    "seals": seals,
    "runs": runs,
    "hashes": hashes,
    "memberships": memberships,
    "holds": holds,
    "details": details,
    "org_events": org_events,
    "pruned_issues": pruned,
    "issues": issues,
    "openings": openings,
    "change_sets": change_sets,
    "changes": changes,
    "spans": spans,
    "timestamps": timestamps,
}
"""By file name."""
