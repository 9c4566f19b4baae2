"""What a run sends with its batches, and what comes back; also between machines."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

import msgspec

from etl.domain.holds import Approval
from etl.sync.removals import BatchRemovals, SecondRound
from etl.sync.result import Tally


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the batches of a run are to be settled."""

    run_id: int | None
    """None: judge only, write nothing."""
    began_at: dt.datetime | None = None
    """When the run began: no observation is dated earlier."""
    approval: Approval | None = None
    """Who approves which held removals; None except in an approval."""
    second: SecondRound | None = None
    """Set if the targets are asked a second time."""


class BatchResult(NamedTuple):
    """The result of a batch, small enough to be sent."""

    tally: Tally
    found: BatchRemovals = BatchRemovals()
