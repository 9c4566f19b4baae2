"""Compares a target's current rows with the replay of its history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etl.verify.chain import Chain
from etl.verify.finding import Broken, Verbatim, require, shown
from etl.verify.rows import TargetRow, WorkflowRow


class Missing(NamedTuple):
    """What is held of a target."""

    since: Sequence[dt.datetime]
    doubted: int
    """Of how many workflows a change is held."""
    at_last_hold: int | None
    """The number in the issue row of the latest hold; None if there is none."""


def require_workflows(chain: Chain, rows: Iterable[WorkflowRow]) -> tuple[list[dt.datetime], int]:
    """Raise Broken unless ``rows`` are the replayed workflows; return since when the held ones are missing, and of how
    many a change is held.

    This empties the chain's workflows.
    """
    missing, doubted = [], 0
    for row in rows:
        _require_workflow(chain, row)
        doubted += row.doubted is not None
        if row.missing_since is not None:
            missing.append(row.missing_since)
    for flow_id in chain.state.flows:
        raise Broken("workflow", Verbatim(f"a row with flow_id {shown(flow_id)}"), Verbatim("missing"))
    return missing, doubted


def require_target(chain: Chain, row: TargetRow, missing: Missing) -> None:
    """Raise Broken unless the row of a target agrees with its history."""
    require("target.version", chain.version, row.version)
    require("target.state_digest", chain.state_digest, row.state_digest)
    require("target.flow_count", chain.flow_count, row.flow_count)
    observed = Verbatim("a digest" if chain.version else "null, since nothing was observed")
    if (row.data_hash is None) is not (chain.version == 0):
        raise Broken("target.data_hash", observed, row.data_hash)
    if row.fence < chain.version:  # a retirement raises it, too
        raise Broken("target.fence", Verbatim(f"at least {chain.version}"), row.fence)
    _require_failures(row)
    _require_open_span(chain, row)
    if row.held_since is None:
        _require_no_hold(chain, row, missing)
    else:
        _require_hold(chain, row, row.held_since, missing)


def _require_workflow(chain: Chain, row: WorkflowRow) -> None:
    flow = chain.state.flows.pop(row.flow_id, None)
    if flow is None:
        raise Broken("workflow", Verbatim(f"without flow_id {shown(row.flow_id)}"), Verbatim("with a row of it"))
    times = chain.times[row.flow_id]
    expected = (flow.flow_name, flow.cycle, flow.editable, times.first_listed_at, times.changed_at)
    if row[1:6] != expected:
        for name, right, there in zip(WorkflowRow._fields[1:6], expected, row[1:6], strict=True):
            require(f"workflow.{name} of {shown(row.flow_id)}", right, there)
    seen_until = _seen_until(chain, times.changed_at)
    if row.missing_since is not None and row.missing_since <= seen_until:
        late = Verbatim(f"after {seen_until}, when it was still there")
        raise Broken(f"workflow.missing_since of {shown(row.flow_id)}", late, row.missing_since)


def _seen_until(chain: Chain, changed_at: dt.datetime) -> dt.datetime:
    """The end of the latest span: none is open during a hold, so missing workflows were there until then."""
    return max(changed_at, chain.latest.span.last_at) if chain.latest else changed_at


def _require_failures(row: TargetRow) -> None:
    failed = row.consecutive_failures > 0
    for name, told in (("last_error_code", row.last_error_code), ("last_error", row.last_error)):
        if (told is not None) is not failed:
            expected = Verbatim(f"{'told' if failed else 'null'} after {row.consecutive_failures} failures")
            raise Broken(f"target.{name}", expected, told)


def _require_open_span(chain: Chain, row: TargetRow) -> None:
    """Raise Broken unless the latest span is open, or the latest attempt failed or was held."""
    latest = chain.latest
    is_open = latest is not None and not row.consecutive_failures and row.held_since is None
    expected = latest.id if latest is not None and is_open else None
    require("target.observation_id", expected, row.observation_id)
    if latest is not None and is_open and latest.version != chain.version:
        raise Broken("observation", Verbatim(f"a span of version {chain.version} to be open"), Verbatim("missing"))


def _require_no_hold(chain: Chain, row: TargetRow, missing: Missing) -> None:
    if missing.since:
        none = Verbatim("null, since nothing of its target is held")
        raise Broken("workflow.missing_since", none, missing.since[0])
    if missing.doubted:
        raise Broken("workflow.doubted", Verbatim("null, since nothing of its target is held"), missing.doubted)
    require("target.answer_digest", chain.state_digest, row.answer_digest)


def _require_hold(chain: Chain, row: TargetRow, held_since: dt.datetime, missing: Missing) -> None:
    if not missing.since and not missing.doubted:
        raise Broken("target.held_since", Verbatim("null, since nothing of it is held"), held_since)
    if missing.since and held_since > min(missing.since):
        earlier = Verbatim(f"not after {min(missing.since)}, since when a workflow is missing")
        raise Broken("target.held_since", earlier, held_since)
    if chain.latest is not None and held_since <= chain.latest.span.last_at:
        later = Verbatim(f"after {chain.latest.span.last_at}, the end of the latest span")
        raise Broken("target.held_since", later, held_since)
    if row.answer_digest in (None, chain.state_digest):
        differs = Verbatim("a digest other than that of the state, of which workflows are missing")
        raise Broken("target.answer_digest", differs, row.answer_digest)
    if missing.at_last_hold is not None:
        require("workflow.missing_since", missing.at_last_hold, len(missing.since))
