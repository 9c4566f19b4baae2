"""The rows that say what is held: of workflows, and of the holds that began or ended."""

from __future__ import annotations

from collections.abc import Iterable, Set
from operator import itemgetter
from typing import Any

from etl.domain.approvals import as_text
from etl.domain.chain import encode
from etl.domain.model import Doubt, Outcome


def missing_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Mark what is held from now on, and clear what came back. (Rows of removed workflows are gone already.)"""
    return [
        {"of_target": outcome.fence.target_id, "of_flow": flow_id, "since": since}
        for outcome in outcomes
        for flow_ids, since in (
            (outcome.missing - outcome.missing_before, outcome.observed_at),
            (outcome.missing_before - outcome.missing, None),
        )
        for flow_id in sorted(flow_ids)
    ]


def doubted_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """What is held of the workflows of which another change is held than before."""
    return [
        {
            "of_target": outcome.fence.target_id,
            "of_flow": flow_id,
            "doubts": as_text(doubt for doubt in outcome.doubted if doubt.flow_id == flow_id),
        }
        for outcome in outcomes
        for flow_id in sorted({doubt.flow_id for doubt in outcome.doubted ^ outcome.doubted_before})
    ]


def hold_events(run_id: int, outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The holds that began, and how earlier ones ended."""
    return [
        {
            "target_id": outcome.fence.target_id,
            "run_id": run_id,
            "kind": kind,
            "at": outcome.observed_at,
            "flow_ids": encode(sorted(flow_ids)).decode(),
            "doubted": encode(sorted(doubts, key=itemgetter(0, 1))).decode(),
            "data_hash": outcome.data_hash,
        }
        for outcome in outcomes
        if outcome.holds or outcome.missing_before or outcome.doubted_before
        for kind, (flow_ids, doubts) in _hold_changes(outcome).items()
        if flow_ids or doubts
    ]


def _hold_changes(outcome: Outcome) -> dict[str, tuple[Set[str], Set[Doubt]]]:
    """What began to be held, came back, and was approved: removals, and other changes."""
    changes = outcome.change_set.changes if outcome.change_set else ()
    ended, undoubted = outcome.missing_before - outcome.missing, outcome.doubted_before - outcome.doubted
    removed = ended & {change.flow_id for change in changes if change.kind == "removed"}
    changed = undoubted & {change.as_doubted() for change in changes}
    return {
        "held": (outcome.missing - outcome.missing_before, outcome.doubted - outcome.doubted_before),
        "back": (ended - removed, undoubted - changed),
        "approved": (removed, changed),
    }
