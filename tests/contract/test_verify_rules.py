"""The rules of a chain, each broken in a chain whose hashes are all correct: a forger must obey them too."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from etl.domain.chain import GENESIS, change_set_hash, state_digest
from etl.domain.diff import baseline, diff
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, ChangeSet, Flow, Span, Target
from etl.verify.chain import Chain
from etl.verify.finding import Broken
from etl.verify.rows import ChangeSetRow, SpanRow
from tests.support.builders import after, flow

OWNER = Target("o", "u")
SECOND = dt.timedelta(seconds=1)
FIRST = {"1": flow(1), "2": flow(2)}
THEN = {"1": flow(1, cycle="H"), "3": flow(3)}


def link(chain: Chain, flows: dict[str, Flow], changes: list[Change], at: dt.datetime, **altered: Any) -> None:
    """Add a change set that is true but for what is ``altered``, and whose hash fits it."""
    version = chain.version + 1
    made = ChangeSet(
        target=OWNER,
        version=version,
        kind="baseline" if version == 1 else "delta",
        observed_at=at,
        last_unchanged_at=altered.pop("last_unchanged_at", chain.latest.span.last_asked_at if chain.latest else None),
        spans=tuple(chain._spans),
        approved_by=None,
        data_hash="d" * 64,
        state_digest=altered.pop("state_digest", state_digest(flows.values())),
        changes=changes,
    )
    kinds = [change.kind for change in changes]
    row = ChangeSetRow(
        target_id=1,
        version=version,
        id=version,
        kind=made.kind,
        observed_at=at,
        last_unchanged_at=made.last_unchanged_at,
        asked_at=at - SECOND,
        last_arrived_at=chain.latest.span.last_at if chain.latest else None,
        held_asked_at=None,
        held_at=None,
        flow_count=len(flows),
        state_digest=made.state_digest,
        counts=[kinds.count(kind) for kind in CHANGE_KINDS],
        approved_by=None,
        approved_scope=None,
        data_hash="d" * 64,
        format=1,
        parent_hash=chain._hash,
        hash=change_set_hash(chain._hash, made),
    )
    chain.link(msgspec.structs.replace(row, **altered), changes)


def span(number: int, first: dt.datetime, last: dt.datetime, **altered: Any) -> SpanRow:
    """A span of two observations, or of one where it has no length."""
    lasted = last - first
    true = Span(
        first_at=first,
        last_asked_at=last - SECOND,
        last_at=last,
        observations=2 if lasted else 1,
        longest_gap_seconds=lasted // SECOND,
        interrupted=False,
    )
    return SpanRow(number, 1, msgspec.structs.replace(true, **altered))


def begun() -> Chain:
    """A chain whose baseline was seen twice, an hour apart."""
    chain = Chain(OWNER)
    link(chain, FIRST, baseline(FIRST), after())
    chain.add_spans([span(1, after(), after(hours=1))])
    return chain


def refused(chain: Chain, flows: dict[str, Flow], changes: list[Change], **altered: Any) -> str:
    with pytest.raises(Broken) as broken:
        link(chain, flows, changes, altered.pop("at", after(hours=2)), **altered)
    return broken.value.what


def test_a_true_chain_goes_on() -> None:
    chain = begun()
    link(chain, THEN, diff(FIRST, THEN), after(hours=2))
    chain.add_spans(
        [span(2, after(hours=2), after(hours=2)), span(3, after(hours=3), after(hours=4), interrupted=True)]
    )
    assert (chain.version, chain.flow_count, chain.changes) == (2, 2, 5)
    assert chain.state_digest == state_digest(THEN.values())
    assert chain.times["1"].first_listed_at == after()
    assert chain.times["1"].changed_at == chain.times["3"].first_listed_at == after(hours=2)
    assert Chain(OWNER)._hash == GENESIS


@pytest.mark.parametrize(
    ("altered", "what"),
    [
        ({"version": 3}, "change_set.version"),
        ({"kind": "baseline"}, "change_set.kind"),
        ({"id": 1}, "change_set.id"),
        ({"parent_hash": GENESIS}, "change_set.parent_hash"),
        ({"hash": GENESIS}, "change_set.hash"),
        ({"at": after(hours=1)}, "change_set.observed_at"),
        ({"last_unchanged_at": after(minutes=5)}, "change_set.last_unchanged_at"),
        ({"last_unchanged_at": None}, "change_set.last_unchanged_at"),
        ({"asked_at": after(hours=3)}, "change_set.asked_at"),
        ({"asked_at": after()}, "change_set.asked_at"),
        ({"last_arrived_at": None}, "change_set.last_arrived_at"),
        ({"held_at": after(hours=2)}, "change_set.held_at"),
        ({"flow_count": 3}, "change_set.flow_count"),
        ({"state_digest": state_digest(FIRST.values())}, "change_set.state_digest"),
        ({"counts": [0, 1, 1, 1, 1, 0]}, "change_set.renamed"),
    ],
)
def test_a_change_set_that_breaks_a_rule_is_refused(altered: dict[str, Any], what: str) -> None:
    assert refused(begun(), THEN, diff(FIRST, THEN), **altered) == what


RENAMED = {**FIRST, "1": flow(1, "other")}


@pytest.mark.parametrize(
    ("flows", "changes"),
    [
        (FIRST, []),
        (RENAMED, diff({"1": flow(1, "false")}, {"1": flow(1, "other")})),
        (RENAMED, [msgspec.structs.replace(diff(FIRST, RENAMED)[0], kind="cycle_changed")]),
        (FIRST, [msgspec.structs.replace(diff(FIRST, RENAMED)[0], new_name="map")]),
        (THEN, [change for change in diff(FIRST, THEN) if change.kind != "removed"]),
        (FIRST, diff({"9": flow(9)}, {})),
        (FIRST, diff({}, {"2": flow(2)})),
        ({**FIRST, "3": flow(3)}, baseline({"3": flow(3)})),
        (RENAMED, [*diff(FIRST, RENAMED), *diff({"1": flow(1)}, {})]),
    ],
)
def test_changes_that_do_not_lead_from_the_state_before_are_refused(
    flows: dict[str, Flow], changes: list[Change]
) -> None:
    """Nothing, a false before, a false kind, no difference, one missing, of nothing, of what is there, twice."""
    assert refused(begun(), flows, changes).startswith(("workflow_change", "change_set"))


def test_a_baseline_has_only_baselines() -> None:
    assert refused(Chain(OWNER), FIRST, diff({}, FIRST)) == "workflow_change"


LATER = (after(hours=2), after(hours=3))


@pytest.mark.parametrize(
    "rows",
    [
        [span(1, *LATER)],
        [span(2, *LATER, observations=1)],
        [span(2, *LATER, longest_gap_seconds=3599)],
        [span(2, *LATER, longest_gap_seconds=3601)],
        [span(2, *LATER, observations=3, longest_gap_seconds=1799)],
        [span(2, *LATER, last_asked_at=after(hours=2))],
        [span(2, *LATER, last_asked_at=after(hours=4))],
        [span(2, after(hours=2), after(hours=2), observations=2)],
        [span(2, after(hours=2), after(hours=2), longest_gap_seconds=1)],
        [span(2, after(hours=2), after(hours=2), last_asked_at=after(hours=1))],
        [span(2, after(minutes=90), after(hours=2), interrupted=True)],
        [span(2, after(hours=2.5), after(hours=3))],
        [span(2, *LATER), span(3, after(hours=4), after(hours=4))],
        [span(2, *LATER), span(3, after(hours=3), after(hours=4), interrupted=True)],
        [span(3, *LATER), span(2, after(hours=4), after(hours=5), interrupted=True)],
    ],
)
def test_spans_that_cannot_have_been_are_refused(rows: Sequence[SpanRow]) -> None:
    """Numbers out of order, times and counts that disagree, overlaps, and beginnings that nothing explains."""
    chain = begun()
    link(chain, THEN, diff(FIRST, THEN), after(hours=2))
    with pytest.raises(Broken, match="observation"):
        chain.add_spans(list(rows))


@pytest.mark.parametrize(
    "rows",
    [[], [span(1, after(), after(), interrupted=True)], [span(1, after(hours=1), after(hours=1))]],
)
def test_the_first_span_of_all_begins_with_the_baseline(rows: list[SpanRow]) -> None:
    chain = Chain(OWNER)
    link(chain, FIRST, baseline(FIRST), after())
    with pytest.raises(Broken, match="observation"):
        chain.add_spans(rows)
