"""What a user's versions say about one workflow since the last step: the changes that a step judges. Pure.

``docs/organisation.md`` has the terms.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from etl.domain.organisation.values import Answer, Listed, ListEntry, ListingChange, User

Changes = Mapping[str, tuple[Listed | None, Listed | None]]
"""By workflow: how it was listed before and after."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a user's list that no step has judged yet."""

    change_set_id: int
    number: int
    answer: Answer
    previous: Answer | None
    """The user's previous answer; None: this is the first."""
    believed: Answer | None
    """The user's last answer before it in which nothing was held; may be ``previous``."""
    shown: Mapping[str, Answer] = msgspec.field(default_factory=dict)
    """By workflow that changed while something was held: the last answer after ``believed`` that changed it."""
    changes: Changes


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A user of a story, as the database has it when a step is judged."""

    target_id: int
    user_id: str
    version: int
    projected_version: int
    """The last version that a step has judged."""
    counts_since: dt.datetime | None
    away_since: dt.datetime | None
    """When the user retired: set if the user came back, or if a step has recorded the retirement."""
    retired_at: dt.datetime | None
    is_held: bool
    held_at: dt.datetime | None
    latest: Answer | None
    """The user's latest answer."""
    believed: Answer | None
    """The user's latest answer in which nothing was held."""
    coverage_gap: dt.timedelta
    """The user is silent if unheard for longer."""

    @property
    def is_known(self) -> bool:
        return self.version > 0 and self.latest is not None

    @property
    def joins(self) -> bool:
        """Whether no step has judged this user's list yet."""
        return self.projected_version == 0

    @property
    def counts(self) -> bool:
        """Whether the user counted until the last step, and has not been away since."""
        return self.counts_since is not None and (self.away_since is None or self.away_since < self.counts_since)

    @property
    def leaves(self) -> bool:
        """Whether the user was retired, and no step has recorded it."""
        return self.retired_at is not None and (self.away_since is None or self.away_since < self.retired_at)

    @property
    def returns(self) -> bool:
        """Whether the user was heard after being configured again, and nothing of the list is held."""
        return (
            self.retired_at is None
            and not self.joins
            and not self.counts
            and not self.is_held
            and self.latest is not None
            and (self.away_since is None or self.latest.arrived_at > self.away_since)
        )

    @property
    def is_judged(self) -> bool:
        """Whether the step judges this user's versions."""
        return self.is_known and (self.joins or self.counts or self.returns)

    def user(self, began: dt.datetime) -> User:
        """The user as a judgement sees it in a run that ``began`` then; a user who is away has retired."""
        assert self.latest is not None  # noqa: S101 - only known users are judged
        away = None if self.joins or self.counts or self.returns else self.away_since
        return User(
            latest=self.latest,
            coverage_gap=self.coverage_gap,
            heard=self.latest.arrived_at >= began,
            retired_at=self.retired_at or away,
        )


def first_answer(member: Member, versions: Sequence[Version]) -> tuple[Answer, int]:
    """The answer from which a returning user counts, and how many versions come before it.

    If an answer was followed by one that said the same, the later one is taken; if something was held since the user
    returned, the latest.
    """
    assert member.latest is not None  # noqa: S101 - only known users return
    assert member.away_since is not None  # noqa: S101 - and only those that were away
    away_since = member.away_since
    if member.held_at is not None and member.held_at > away_since:
        return member.latest, len(versions)
    for number, version in enumerate(versions):
        if version.answer.arrived_at > away_since:
            if version.previous is not None and version.previous.arrived_at > away_since:
                return version.previous, number
            return version.answer, number + 1
    return member.latest, len(versions)


def listing_changes(
    member: Member, versions: Sequence[Version], flow_id: str, listed: Listed | None
) -> Iterator[ListingChange]:
    """What the versions of a user say about a workflow that was ``listed`` so before them."""
    coming, after = first_answer(member, versions) if member.returns else (None, 0)
    stayed = listed
    for number, version in enumerate(versions):
        change = version.changes.get(flow_id)
        if member.returns and number == after:
            yield from _first_change(member.user_id, stayed, listed, coming)
        if change is None:
            continue
        before, listed = change
        if not member.returns or number >= after:
            yield ListingChange(member.user_id, before, listed, _previous(version, flow_id, before), version.answer)
        elif version.answer.arrived_at <= (member.away_since or version.answer.arrived_at):
            stayed = listed
            yield ListingChange(member.user_id, before, listed, _previous(version, flow_id, before), version.answer)
    if member.returns and after == len(versions):
        yield from _first_change(member.user_id, stayed, listed, coming)


def _first_change(
    user_id: str, before: Listed | None, after: Listed | None, answer: Answer | None
) -> Iterator[ListingChange]:
    if answer is not None and (before is not None or after is not None):
        yield ListingChange(user_id, before, after, None, answer)


def _previous(version: Version, flow_id: str, before: Listed | None) -> Answer | None:
    """The user's last known answer that listed it; if it was not listed, the user's last answer."""
    if before is None or version.previous == version.believed:
        return version.previous
    return last_of(version.believed, version.shown.get(flow_id))


def listed_before(versions: Sequence[Version], flow_id: str, now: Listed | None) -> Listed | None:
    """How a user listed a workflow before the versions; it is listed as ``now`` after them."""
    return next((version.changes[flow_id][0] for version in versions if flow_id in version.changes), now)


def last_of(*answers: Answer | None) -> Answer:
    """The one that arrived last; at least one is known."""
    return max((answer for answer in answers if answer is not None), key=lambda answer: answer.arrived_at)


def while_counting(member: Member, listing: ListEntry) -> ListEntry:
    """A user's listing of a workflow, not from before the user counts."""
    if member.counts_since is None or member.joins:
        return listing
    return listing._replace(since=max(listing.since, member.counts_since))
