"""What a run sends to its batches, and what it gets back; also between machines."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from etl.domain.holds import Approval
from etl.domain.model import Fence, Target
from etl.sync.removals import BatchRemovals, SecondRound
from etl.sync.result import Tally


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a run wants of its batches."""

    run_id: int | None
    """None: judge only, write nothing."""
    began_at: dt.datetime | None = None
    """When the run began: nothing that it observes is dated before."""
    coverage_gap: dt.timedelta
    """A longer silence ends a span; ``gaps`` has the targets whose schedule says otherwise."""
    gaps: Mapping[Target, dt.timedelta] = {}
    approval: Approval | None = None
    """Who approves which held removals; None in every run but an approval."""
    second: SecondRound | None = None
    """Set where the targets are asked a second time."""

    def gap_of(self, fence: Fence) -> dt.timedelta:
        return self.gaps.get(fence.target, self.coverage_gap)


class BatchResult(NamedTuple):
    """The result of a batch, small enough to be sent."""

    tally: Tally
    found: BatchRemovals = BatchRemovals()
