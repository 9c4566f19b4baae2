"""What travels between a run and its batches, to other machines too: what is wanted, and what became of it."""

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
    coverage_gap: dt.timedelta
    """A longer silence ends a span; ``gaps`` has the targets whose schedule says otherwise."""
    gaps: Mapping[Target, dt.timedelta] = {}
    approval: Approval | None = None
    """By whom held removals are said to be true, and which; None in every run but an approval."""
    second: SecondRound | None = None
    """Given where the targets are asked a second time."""

    def gap_of(self, fence: Fence) -> dt.timedelta:
        return self.gaps.get(fence.target, self.coverage_gap)


class BatchResult(NamedTuple):
    """What became of a batch, small enough to travel."""

    tally: Tally
    found: BatchRemovals = BatchRemovals()
