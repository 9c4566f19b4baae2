"""Everything that is read for people, files and machines: each question is answered in one place."""

from __future__ import annotations

from etl.report.queries import Report
from etl.report.rows import (
    Column,
    CurrentWorkflow,
    HeldRemoval,
    ProblemCause,
    SyncRun,
    TargetAsOf,
    TargetHealth,
    WorkflowAsOf,
    WorkflowEvent,
    WorkflowHistory,
    columns_of,
)

__all__ = [
    "Column",
    "CurrentWorkflow",
    "HeldRemoval",
    "ProblemCause",
    "Report",
    "SyncRun",
    "TargetAsOf",
    "TargetHealth",
    "WorkflowAsOf",
    "WorkflowEvent",
    "WorkflowHistory",
    "columns_of",
]
