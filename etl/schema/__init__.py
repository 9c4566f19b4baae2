"""The tables that the statements are written with.

The Alembic revisions create them, with the checks, triggers and views that queries do not need to know.
"""

from __future__ import annotations

from typing import Final

from etl.schema.columns import UnreadableTime, UtcTime, metadata, time_of_text
from etl.schema.lists import (
    CHANGE_KIND,
    COMING,
    LEAVING,
    TARGET_KEY,
    change_set,
    observation,
    target,
    workflow,
    workflow_change,
)
from etl.schema.organisations import (
    org_event,
    org_flow,
    org_loss,
    org_state,
    org_step,
    org_turnover,
    organisation,
    roster,
    roster_user,
)
from etl.schema.runs import (
    ASKS_NOBODY,
    DIGEST_OF_NONE,
    OWN_SLOT,
    answer,
    condition,
    hold_event,
    lease,
    overdue_notice,
    pruned_issues,
    run_seal,
    seal_timestamp,
    sync_issue,
    sync_run,
    target_membership,
    trail,
    verification,
    workflow_detail,
)

__all__ = [
    "ASKS_NOBODY",
    "CHANGE_KIND",
    "COMING",
    "DIGEST_OF_NONE",
    "GAPS_IN_NUMBERS",
    "LEAVING",
    "OWN_SLOT",
    "TARGET_KEY",
    "UnreadableTime",
    "UtcTime",
    "answer",
    "change_set",
    "condition",
    "hold_event",
    "lease",
    "metadata",
    "observation",
    "org_event",
    "org_flow",
    "org_loss",
    "org_state",
    "org_step",
    "org_turnover",
    "organisation",
    "overdue_notice",
    "pruned_issues",
    "roster",
    "roster_user",
    "run_seal",
    "seal_timestamp",
    "sync_issue",
    "sync_run",
    "target",
    "target_membership",
    "time_of_text",
    "trail",
    "verification",
    "workflow",
    "workflow_change",
    "workflow_detail",
]

GAPS_IN_NUMBERS: Final = 1
"""``PRAGMA user_version`` of an SQLite file whose ids came from PostgreSQL, which leaves some out."""
