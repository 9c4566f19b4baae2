"""Everything that is read for people, files and machines: each question is answered in one place."""

from __future__ import annotations

from etl.report.queries import Report
from etl.report.rows import (
    Column,
    HeldWorkflow,
    ListChange,
    ListState,
    ListWorkflow,
    ListWorkflowAsOf,
    ProblemCause,
    SyncRun,
    TargetAsOf,
    TargetHealth,
    columns_of,
)

__all__ = [
    "Column",
    "HeldWorkflow",
    "ListChange",
    "ListState",
    "ListWorkflow",
    "ListWorkflowAsOf",
    "ProblemCause",
    "Report",
    "SyncRun",
    "TargetAsOf",
    "TargetHealth",
    "columns_of",
]
