"""Queries that files, tables and pages share: each is a SELECT whose columns are the fields of one row type."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, and_, or_, select, true

from etl.report.rows import OrgWorkflowState, SyncRun, TargetHealth, view
from etl.schema import TARGET_KEY, sync_issue, target, workflow

Show = Literal["", "problems", "never_observed", "empty", "retired"]
"""Which targets: all configured ones, or those with problems, not observed yet, with an empty list, or retired."""

HELD = and_(target.c.held_since.is_not(None), target.c.retired_at.is_(None))
"""Removals or changes of the target wait for a person."""


def targets(which: Show = "") -> Select[Any]:
    """``TargetHealth``, by organisation, user and expression. A target has a problem if its last attempt failed or
    was refused, or if something is held."""
    health = view("target_health", TargetHealth)
    chosen: dict[Show, ColumnElement[bool]] = {
        "": true(),
        "problems": or_(health.c.consecutive_failures > 0, health.c.held_since.is_not(None)),
        "never_observed": health.c.versions == 0,
        "empty": and_(health.c.versions > 0, health.c.flow_count == 0),
        "retired": true(),
    }
    retired = health.c.retired_at.is_not(None) if which == "retired" else health.c.retired_at.is_(None)
    key = (health.c.org_id, health.c.user_id, health.c.expression)
    return select(health).where(retired, chosen[which]).order_by(*key)


def show(asked: str) -> Show:
    """The choice with this name; all configured targets if there is none."""
    return next((known for known in get_args(Show) if known == asked), "")


def held_targets() -> Select[Any]:
    """The targets that wait for a person, the one that waits longest first: ``target.id``, organisation, user,
    expression, ``held_since``, ``flow_count`` and the latest reason."""
    columns = (target.c.id, *TARGET_KEY, target.c.held_since, target.c.flow_count, _latest_reason())
    return select(*columns).where(HELD).order_by(target.c.held_since, *TARGET_KEY)


def held_workflows(*, org: str | None = None) -> Select[Any]:
    """``HeldWorkflow``: one row per workflow of which something is held, by organisation, user, expression, flow_id."""
    held = ("flow_id", "flow_name", "cycle", "missing_since", "doubted")
    return (
        select(*TARGET_KEY, target.c.held_since, *(workflow.c[name] for name in held), _latest_reason())
        .join_from(target, workflow, workflow.c.target_id == target.c.id)
        .where(
            HELD, workflow.c.missing_since.is_not(None) | workflow.c.doubted.is_not(None), *equal(target, org_id=org)
        )
        .order_by(*TARGET_KEY, workflow.c.flow_id)
    )


def _latest_reason() -> ColumnElement[str | None]:
    """The guard's reason when it last held removals of the target."""
    held_by = sync_issue.c.target_id == target.c.id, sync_issue.c.verdict == "held"
    latest = select(sync_issue.c.message).where(*held_by).order_by(sync_issue.c.id.desc()).limit(1)
    return latest.scalar_subquery().label("reason")


def org_states_at(at: dt.datetime) -> tuple[Any, Select[Any]]:
    """``org_workflow_history``, and a SELECT of the states that had begun at ``at`` and had not ended:
    ``OrgWorkflowState``."""
    state = view("org_workflow_history", OrgWorkflowState)
    lasting = or_(state.c.valid_to.is_(None), state.c.valid_to > at)
    return state, select(state).where(state.c.valid_from <= at, lasting)


def runs() -> Select[Any]:
    """``SyncRun``, the latest first."""
    run = view("sync_run", SyncRun)
    return select(run).order_by(run.c.id.desc())


def equal(source: Any, **values: str | None) -> list[ColumnElement[bool]]:
    """A condition for each value that is not None."""
    return [source.c[column] == value for column, value in values.items() if value is not None]
