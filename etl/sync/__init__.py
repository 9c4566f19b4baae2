"""One run over many targets: write its row first, then work in batches (read fences, fetch, decide, apply)."""

from __future__ import annotations

from etl.sync.batch import CircuitBreaker, RunContext
from etl.sync.details import DetailLimits
from etl.sync.result import BatchResult, Details, RunOptions, RunReport, Tally, TargetIssue
from etl.sync.rosters import Refreshed, Rosters, organisations
from etl.sync.run_logger import RunLogger
from etl.sync.runner import plan, run

__all__ = [
    "BatchResult",
    "CircuitBreaker",
    "DetailLimits",
    "Details",
    "Refreshed",
    "Rosters",
    "RunContext",
    "RunLogger",
    "RunOptions",
    "RunReport",
    "Tally",
    "TargetIssue",
    "organisations",
    "plan",
    "run",
]
