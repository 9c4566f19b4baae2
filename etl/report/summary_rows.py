"""The rows of ``summaries``. Times are aware, in UTC."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final, NamedTuple

from etl.domain.model import CYCLE_LABELS

OTHER: Final = "other"
"""Stands for every cycle that EnOS does not document, and for no cycle."""
CYCLES: Final = (*reversed(CYCLE_LABELS), OTHER)


class Scope(NamedTuple):
    """Which days are summed up, both included, and of which organisation ("": of all)."""

    since: dt.date
    until: dt.date
    org: str = ""
    everything: bool = True
    """Whether coverage gaps and changes outside these days are listed, too."""
    zone: dt.tzinfo = dt.UTC
    """Where a day begins at midnight."""

    def __str__(self) -> str:
        return f"the time from {self.since} to {self.until}"

    @property
    def begins_at(self) -> dt.datetime:
        return dt.datetime.combine(self.since, dt.time(), self.zone)

    @property
    def ends_at(self) -> dt.datetime:
        """The first moment after it."""
        return dt.datetime.combine(self.until + dt.timedelta(days=1), dt.time(), self.zone)


class Day(NamedTuple):
    """What happened in the organisations on a day."""

    day: dt.date
    events: Mapping[str, int]
    """How many of each of ``EVENT_KINDS``."""


class DaySnapshot(NamedTuple):
    """What there was at the end of a day."""

    day: dt.date
    by_cycle: Mapping[str, int]
    """How many workflows the organisations had, for each of ``CYCLES``."""
    unobserved: int
    """Targets whose list is not known: in a coverage gap with changes inside, or in an open one."""
    targets: int
    """Targets that had been observed by then and were not retired."""

    @property
    def share_unobserved(self) -> float:
        """0 to 1."""
        return min(1.0, self.unobserved / self.targets) if self.targets else 0.0


class Churn(NamedTuple):
    """What happened in an organisation."""

    org_id: str
    events: Mapping[str, int]
    """How many of each of ``EVENT_KINDS``."""
    workflows: int
    """How many it has now."""


class Gap(NamedTuple):
    """A time without an observation of a target."""

    org_id: str
    user_id: str
    expression: str
    gap_from: dt.datetime
    gap_to: dt.datetime | None
    changed_inside: bool


class Hold(NamedTuple):
    """A target of which something is held."""

    org_id: str
    user_id: str
    expression: str
    held_since: dt.datetime
    held_workflows: int
    flow_count: int
    reason: str | None
    code: str
    """The code that ``guard approve`` takes to approve exactly this."""


class MostChanged(NamedTuple):
    """A workflow that changed often."""

    org_id: str
    flow_id: str
    changes: int
