"""What somebody could do to a bundle, each under its name, with the finding that must come of it: one table for every
test that needs one, and for docs/audit.md, which names them."""

from __future__ import annotations

import copy
import datetime as dt
import functools
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from etl.audit import check
from etl.domain import chain
from etl.domain.model import Flow, Target
from etl.signing.keys import SigningKey
from tests.support import bundles
from tests.support.bundles import ANN, BEN, CAT, MINUTE, START, Row, Rows, Story

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@functools.cache
def story() -> Story:
    """The trail that is tampered with: signed, copied once, with everything that can happen."""
    return bundles.some_days(SigningKey(KEY).sign)


class Draft:
    """A bundle that is about to be written."""

    def __init__(self, rows: Rows, **fields: object) -> None:
        self.rows, self.answers, self.fields = rows, dict(story().answers), fields
        self.refile: Callable[[dict[str, bytes]], object] = lambda files: None
        """What is done to its files before the manifest names them."""
        self.remake: Callable[[Row], object] = lambda manifest: None
        self.repack: Callable[[bytes], bytes] = lambda archive: archive

    def write(self, file: Path) -> Path:
        files = bundles.files_of(self.rows, self.answers)
        self.refile(files)
        manifest = bundles.manifest_of(self.rows, files, **self.fields)
        self.remake(manifest)
        file.write_bytes(self.repack(bundles.write(file, files, manifest).read_bytes()))
        return file


def whole() -> Draft:
    return Draft(copy.deepcopy(story().rows))


def part() -> Draft:
    """Of the time from run 6 to run 12."""
    seals = story().rows["seals"]
    since, until = seals[5]["sealed_at"], seals[11]["sealed_at"] + MINUTE
    return Draft(bundles.between(story(), since, until), since=since, until=until)


def one_organisation() -> Draft:
    return Draft(bundles.only(story(), "o1"), org_id="o1")


class Tampering(NamedTuple):
    do: Callable[[Draft], object]
    place: str
    """How the finding begins, a pattern."""
    draft: Callable[[], Draft]
    rehashed: bool
    """Every hash is computed anew, as the owner of a database can; then only rules find it, or what was kept."""
    of_rows: bool
    """Rows are another than they were, not what is around them."""

    def found(self, printed: str) -> bool:
        """Whether the finding is in what the checker printed."""
        return re.search(f"^(?:{self.place})", printed, re.MULTILINE) is not None

    def write(self, file: Path, *, forge: bool = False) -> Path:
        """Tamper with a bundle, and write it; ``forge``: with every hash computed anew."""
        draft = self.draft()
        self.do(draft)
        if forge or self.rehashed:
            bundles.forge(draft.rows)
        return draft.write(file)


TAMPERINGS: dict[str, Tampering] = {}
Tamper = Callable[[Rows], object]
Redraft = Callable[[Draft], object]


def altered(place: str) -> Callable[[Tamper], Tamper]:
    """Name what must be found, a pattern, when rows are altered and no hash is computed anew."""

    def kept(tamper: Tamper) -> Tamper:
        TAMPERINGS[tamper.__name__] = Tampering(lambda draft: tamper(draft.rows), place, whole, False, True)
        return tamper

    return kept


def forged(sentence: str, *, rehash: bool = True) -> Callable[[Tamper], Tamper]:
    """Name what must be found, a text, when every hash is computed anew and the trail cannot have been so."""

    def kept(tamper: Tamper) -> Tamper:
        do = Tampering(lambda draft: tamper(draft.rows), re.escape(sentence), whole, rehash, True)
        TAMPERINGS[tamper.__name__] = do
        return tamper

    return kept


def redrafted(place: str, draft: Callable[[], Draft] = whole) -> Callable[[Redraft], Redraft]:
    """Name what must be found when the bundle around the rows is another one; nothing that was kept denies that."""

    def kept(do: Redraft) -> Redraft:
        TAMPERINGS[do.__name__] = Tampering(do, place, draft, False, False)
        return do

    return kept


def of(rows: Rows, name: str, target: object = None, **values: object) -> list[Row]:
    listed = [row for row in rows[name] if target is None or bundles.target_of(row) == target]
    return [row for row in listed if all(row[column] == value for column, value in values.items())]


def first(rows: Rows, name: str, target: object = None, **values: object) -> Row:
    return of(rows, name, target, **values)[0]


def run(rows: Rows, number: int) -> Row:
    return first(rows, "runs", id=number)


# ------------------------------------------------------------------------------- rows, with the hashes as they were


@altered(r"o1/ann, after .* 1 runs that have neither an observation nor an issue")
def all_failures_deleted_and_runs_called_succeeded(rows: Rows) -> None:
    rows["issues"] = []
    for row in rows["runs"]:
        if row["status"] in ("failed", "partial"):
            row |= {"status": "succeeded", "unchanged": row["unchanged"] + row["failed"] + row["held"] + row["stale"]}
            row |= {"failed": 0, "held": 0, "stale": 0}


@altered(r"o1/ann, version 2: change_set\.observed_at is .*, not in the time of run 7")
def runs_of_two_versions_exchanged(rows: Rows) -> None:
    two, three = first(rows, "change_sets", ANN, version=2), first(rows, "change_sets", ANN, version=3)
    two["run_id"], three["run_id"] = three["run_id"], two["run_id"]


@altered(r"run 13 \(seal 13\): events_digest")
def a_retirement_moved_by_five_months(rows: Rows) -> None:
    first(rows, "memberships", BEN, kind="retired")["at"] -= dt.timedelta(days=150)


@altered(r"o1/ann, version 4: observation\.observations from .* should be 3, .* but is 90")
def an_open_span_stretched_back_by_two_months(rows: Rows) -> None:
    span = first(rows, "spans", ANN, version=4)
    span |= {"observations": 90, "longest_gap_seconds": 40}


@altered(r"o2/cat, version 1: observation\.observations from .* should be 1, .* but is 2")
def a_span_stretched_into_a_run_that_failed(rows: Rows) -> None:
    span, failed = first(rows, "spans", CAT), run(rows, 14)
    span |= {"last_at": failed["finished_at"], "last_asked_at": failed["started_at"], "observations": 2}
    span["longest_gap_seconds"] = (span["last_at"] - span["first_at"]) // dt.timedelta(seconds=1)


@altered(r"o2/cat, version 1: observation\.observations from .* should be 1")
def a_span_stretched_by_two_months(rows: Rows) -> None:
    span = first(rows, "spans", CAT)
    later = span["last_at"] + dt.timedelta(days=60)
    span |= {"last_at": later, "last_asked_at": later - MINUTE, "observations": 2, "longest_gap_seconds": 5_184_000}


@altered(r"o1/ann, version 4: observation\.last_at is .*, when no sealed run observed it")
def an_observation_at_a_time_of_no_run(rows: Rows) -> None:
    span = first(rows, "spans", ANN, version=4)
    span |= {"last_at": span["last_at"] + dt.timedelta(hours=1), "longest_gap_seconds": 4000}


@altered(r"o2/cat, version 2: .*run 14 \(seal 14\)|run 14 .*change_sets_digest|o2/cat, .*observation")
def a_version_inserted_in_a_run_that_is_sealed(rows: Rows) -> None:
    insert_version(rows, CAT, run(rows, 14))


@altered(r"run 2 \(seal 2\): change_sets_digest|o9/eve.*run 2 \(seal 2\) was not to ask")
def a_user_inserted_into_a_run_that_is_sealed(rows: Rows) -> None:
    insert_version(rows, Target("o9", "eve"), run(rows, 2))


@altered(r"run 2 \(seal 2\): events_digest")
def a_user_inserted_with_a_membership(rows: Rows) -> None:
    eve = Target("o9", "eve")
    rows["memberships"].append({**rows["memberships"][0], **eve._asdict(), "id": 99, "run_id": 2})


def insert_version(rows: Rows, target: Target, row: Row) -> None:
    at, before = row["started_at"] + MINUTE / 10, of(rows, "change_sets", target)
    story = Story()
    story.rows, story.now = rows, at
    seen = story.targets.setdefault(target, bundles.Seen())
    if before:
        seen.version, seen.hash, seen.spans = before[-1]["version"], before[-1]["hash"], of(rows, "spans", target)
    story._observe(row["id"], target, [Flow("7", "x", "D", True)], None)


@altered(r"o1/ann, version 2, workflow '1': after its change")
def a_name_altered_in_one_of_two_changes(rows: Rows) -> None:
    first(rows, "changes", ANN, version=2, flow_id="1", kind="renamed")["new_name"] = "other"


@altered(r"o1/ann, version 2: change_set\.state_digest")
def a_name_altered_in_a_change(rows: Rows) -> None:
    first(rows, "changes", ANN, version=2, flow_id="10")["new_name"] = "other"


@altered(r"o1/ann, version 2: change_set\.added should be 0, but is 1")
def a_change_deleted(rows: Rows) -> None:
    rows["changes"].remove(first(rows, "changes", ANN, version=2, flow_id="10"))


@altered(r"o1/ann, version 2: change_set\.added should be 2, but is 1")
def a_change_added(rows: Rows) -> None:
    rows["changes"].append({**first(rows, "changes", ANN, version=2, flow_id="10"), "flow_id": "11"})


@altered(r"o1/ben \[电\], version 5: observation: rows of a version that is not there")
def the_last_version_deleted(rows: Rows) -> None:
    for name in ("change_sets", "changes"):
        rows[name] = [row for row in rows[name] if row not in of(rows, name, BEN, version=5)]


@altered(r"o1/ann, version 2: change_set\.version should be 2, but is 3")
def a_version_deleted_in_the_middle(rows: Rows) -> None:
    for name in ("change_sets", "changes", "spans"):
        rows[name] = [row for row in rows[name] if row not in of(rows, name, ANN, version=2)]


@altered(r"run 11 \(seal 11\): change_sets_digest|o2/cat, to the end|o2/cat, and before")
def a_user_deleted(rows: Rows) -> None:
    for name in ("change_sets", "changes", "spans"):
        rows[name] = [row for row in rows[name] if bundles.target_of(row) != CAT]


@altered(r"run 14 \(seal 14\): targets_digest")
def a_user_deleted_with_every_trace(rows: Rows) -> None:
    for name in ("change_sets", "changes", "spans", "issues", "memberships", "holds"):
        rows[name] = [row for row in rows[name] if bundles.target_of(row) != CAT]


@altered(r"o1/ben \[电\], version 3: change_set\.hash")
def an_approver_renamed(rows: Rows) -> None:
    first(rows, "change_sets", BEN, version=3)["approved_by"] = "Yannick"


@altered(r"o1/ben \[电\], version 3: change_set\.hash")
def an_approval_taken_away(rows: Rows) -> None:
    first(rows, "change_sets", BEN, version=3).update(approved_by=None, approved_scope=None)
    rows["holds"] = [row for row in rows["holds"] if row["kind"] != "approved"]


@altered(r"o1/ben \[电\], version 3: change_set\.approved_scope")
def more_approved_than_was_held(rows: Rows) -> None:
    first(rows, "holds", BEN, kind="approved")["flow_ids"].append("流")


@altered(r"run 6 \(seal 6\): events_digest|o1/ben \[电\], run 6: missing")
def a_hold_made_smaller(rows: Rows) -> None:
    first(rows, "holds", BEN, kind="held")["flow_ids"].pop()


@altered(r"run 6 \(seal 6\): events_digest|o1/ben \[电\], hold in run 6: its answer does not show held")
def a_held_change_that_no_answer_shows(rows: Rows) -> None:
    first(rows, "holds", BEN, kind="held")["doubted"].append(["10", "renamed", "another name"])


@altered(r"run 6 \(seal 6\): issues_digest|o1/ben \[电\], run 6: missing should be 7, but is 6")
def fewer_missing_in_an_issue(rows: Rows) -> None:
    first(rows, "issues", BEN, run_id=6)["missing"] -= 1


@altered(r"run 3 \(seal 3\): issues_digest")
def another_reason_of_a_failure(rows: Rows) -> None:
    first(rows, "issues", BEN, run_id=3)["error_code"] = "timeout"


@altered(r"run 8 \(seal 8\): issues_digest")
def another_verdict(rows: Rows) -> None:
    first(rows, "issues", BEN, run_id=8)["verdict"] = "stale"


@altered(r"o1/ann, run 2|o1/ann, version 1: observation\.observations from")
def a_failure_invented(rows: Rows) -> None:
    rows["issues"].append({**ANN._asdict(), "run_id": 2, "verdict": "failed", "error_code": "62101", "missing": 0})


@altered(r"o1/ann, version 2: change_set\.hash")
def one_observation_more(rows: Rows) -> None:
    first(rows, "spans", ANN, version=1)["observations"] += 1


@altered(r"o1/ann, after .* neither an observation nor an issue|o1/ann, version 4: observation\.first_at")
def a_span_of_the_present_version_shortened(rows: Rows) -> None:
    span = first(rows, "spans", ANN, version=4)
    span |= {
        "last_at": span["first_at"],
        "last_asked_at": span["first_at"],
        "observations": 1,
        "longest_gap_seconds": 0,
    }


@altered(r"o2/cat, version 1.*|o2/cat, and before .* neither an observation")
def the_span_of_a_quiet_user_deleted(rows: Rows) -> None:
    rows["spans"] = [row for row in rows["spans"] if bundles.target_of(row) != CAT]


@altered(r"o1/ann, version 2: change_set\.hash")
def an_interruption_denied(rows: Rows) -> None:
    """The bundle's other rules would find it, were the hash computed anew."""
    first(rows, "change_sets", ANN, version=2)["data_hash"] = "0" * 64


@altered(r"o1/ann, version 2: observation\.interrupted should be True")
def an_outage_denied(rows: Rows) -> None:
    of(rows, "spans", ANN, version=2)[1]["interrupted"] = False


@altered(r"o1/ann, version 2: change_set\.last_unchanged_at")
def a_change_made_to_look_faster(rows: Rows) -> None:
    first(rows, "change_sets", ANN, version=2)["last_unchanged_at"] += MINUTE


@altered(r"o1/ann, version 2: change_set\.hash|o1/ann, version 2: observation")
def a_version_with_another_date(rows: Rows) -> None:
    first(rows, "change_sets", ANN, version=2)["observed_at"] -= dt.timedelta(seconds=1)


@altered(r"seal 9: id should be 9, but is 10")
def a_run_deleted_with_its_seal(rows: Rows) -> None:
    for name in ("runs", "seals"):
        del rows[name][8]


@altered(r"run 18: has no seal|manifest\.json: last_seal|seal 18")
def the_last_seal_deleted(rows: Rows) -> None:
    del rows["seals"][17]


@altered(r"seal 8: its run 8 is missing")
def a_run_deleted(rows: Rows) -> None:
    del rows["runs"][7]


@altered(r"run 3 \(seal 2\): seal")
def two_seals_exchanged(rows: Rows) -> None:
    two, three = rows["seals"][1], rows["seals"][2]
    two["run_id"], three["run_id"] = three["run_id"], two["run_id"]


@altered(r"run 9 \(seal 9\): seal")
def an_aborted_run_called_succeeded(rows: Rows) -> None:
    run(rows, 9)["status"] = "succeeded"


@altered(r"run 4 \(seal 4\): seal")
def a_run_moved_by_an_hour(rows: Rows) -> None:
    run(rows, 4)["started_at"] -= dt.timedelta(hours=1)


@altered(r"run 4 \(seal 4\): seal")
def missed_slots_forgotten(rows: Rows) -> None:
    run(rows, 4)["missed"] += 3


@altered(r"run 10 \(seal 10\): seal")
def an_approval_called_a_schedule(rows: Rows) -> None:
    run(rows, 10)["origin"] = "schedule"


@altered(r"run 11 \(seal 11\): targets_digest|o2/cat, .*was not asked|o2/cat, version 1: run 11")
def a_user_left_out_of_what_was_to_be_asked(rows: Rows) -> None:
    run(rows, 11)["scope"]["user_id"] = "nobody"


@altered(r"run 12 \(seal 12\): events_digest")
def an_event_of_the_organisation_made_certain(rows: Rows) -> None:
    rows["org_events"][0]["proven_for_all"] = False


@altered(r"run 12 \(seal 12\): events_digest")
def another_author_in_a_detail(rows: Rows) -> None:
    rows["details"][0]["update_user"] = "u1"


@altered(r"run 12 \(seal 12\): events_digest")
def a_detail_deleted(rows: Rows) -> None:
    rows["details"].clear()


@altered(r"run 5 \(seal 5\): issues_digest[^$]*^run 15 \(seal 15\): events_digest")
def issues_pruned_unsaid(rows: Rows) -> None:
    rows["pruned_issues"].clear()


@altered(r"run 3 \(seal 3\): its issues, which were pruned")
def a_pruning_invented(rows: Rows) -> None:
    rows["pruned_issues"].append({"run_id": 15, "pruned_run_id": 3, "at": START})


@altered(r"seal 5: is not signed, though a seal before it was")
def a_signature_taken_away(rows: Rows) -> None:
    rows["seals"][4] |= {"signature": None, "key_id": None}


@altered(r"run 13 \(seal 13\): seal|seal 13: parent")
def a_copy_that_says_it_is_the_first(rows: Rows) -> None:
    del rows["trails"][1]


@altered(r"seal 1: parent")
def a_trail_that_began_earlier(rows: Rows) -> None:
    rows["trails"][0]["created_at"] -= dt.timedelta(days=365)


# ------------------------------------------------------- a trail that cannot have been so, although every hash is right


@forged("o1/ben [电], run 13 (seal 13), memberships.jsonl: at is 2026-03-01 03:29:12+00:00, before 2026-03-01 04:17:24")
def a_member_who_came_back_before_he_left(rows: Rows) -> None:
    """Their places are exchanged, not their runs or times: each digest of a run is as it was."""
    mine = [place for place, row in enumerate(rows["memberships"]) if bundles.target_of(row) == BEN]
    exchange(rows["memberships"], mine[0], mine[-1])
    for number, row in enumerate(rows["memberships"], 1):
        row["id"] = number


@forged("o1/ben [电], run 7 (seal 7), holds.jsonl: at is 2026-03-01 01:52:24+00:00, before 2026-03-01 02:40:54")
def a_hold_that_ended_before_it_began(rows: Rows) -> None:
    mine = [place for place, row in enumerate(rows["holds"]) if bundles.target_of(row) == BEN]
    exchange(rows["holds"], mine[0], mine[-1])


def exchange(rows: list[Row], one: int, other: int) -> None:
    rows[one], rows[other] = rows[other], rows[one]


@forged("memberships.jsonl: id 1 does not rise")
def a_membership_twice_under_its_number(rows: Rows) -> None:
    rows["memberships"][1]["id"] = 1


@forged("o1/ann, version 4: observation.observations from 2026-03-01 04:17:30+00:00 to 2026-03-01 04:49:54+00:00")
def fewer_observations_than_runs(rows: Rows) -> None:
    first(rows, "spans", ANN, version=4).update(observations=2, longest_gap_seconds=1944)


@forged("o1/ben [电], version 5: run 16 (seal 16) was not to ask this target")
def a_version_of_a_run_that_was_not_to_ask(rows: Rows) -> None:
    run(rows, 16)["scope"]["user_id"] = "ann"


@forged("o1/ben [电], version 3: the origin of its run should be 'approval', but is 'command'")
def an_approval_outside_an_approval(rows: Rows) -> None:
    run(rows, 10)["origin"] = "command"


@forged("o1/ben [电], version 3: change_set.approved_by and approved_scope should both be there, or neither")
def an_approval_of_nobody(rows: Rows) -> None:
    first(rows, "change_sets", BEN, version=3)["approved_by"] = None


@forged("o1/ben [电], hold: held of '101' in run 8 cannot be")
def a_workflow_held_twice(rows: Rows) -> None:
    rows["holds"].insert(2, {**first(rows, "holds", BEN, run_id=6), "run_id": 8})


@forged("o1/ann, hold: back of '1' in run 4 cannot be")
def a_hold_that_ends_before_it_began(rows: Rows) -> None:
    rows["holds"].insert(0, {**first(rows, "holds", ANN, kind="held"), "kind": "back", "run_id": 4})


@forged("o1/ben [电], run 3 (seal 3): sync_issue: it was not asked, or has two verdicts")
def two_verdicts_of_a_target(rows: Rows) -> None:
    rows["issues"].append(copy.copy(first(rows, "issues", BEN, run_id=3)))


@forged("o2/cat, run 3 (seal 3): sync_issue: it was not asked, or has two verdicts")
def a_failure_of_a_target_that_was_not_asked(rows: Rows) -> None:
    rows["issues"].append({**first(rows, "issues", BEN, run_id=3), **CAT._asdict()})


@forged("run 4 (seal 4): the times of the run and of the seal go back")
def a_seal_before_the_one_before(rows: Rows) -> None:
    rows["seals"][3]["sealed_at"] = rows["seals"][1]["sealed_at"]
    run(rows, 4).update(started_at=START, finished_at=START)


@forged("run 4 (seal 4): the times of the run and of the seal go back")
def a_run_that_ends_before_it_begins(rows: Rows) -> None:
    run(rows, 4)["finished_at"] = run(rows, 4)["started_at"] - MINUTE


@forged("o2/cat, version 1: observation.first_at is 2026-03-01 02:56:54+00:00, before the version was observed")
def a_span_before_its_version(rows: Rows) -> None:
    span = first(rows, "spans", CAT)
    for name in ("first_at", "last_asked_at", "last_at"):
        span[name] -= MINUTE / 10


@forged("o1/ann, version 2: observation: first_at and last_asked_at should be after 2026-03-01 01:03:42+00:00")
def a_span_that_was_asked_for_before_the_end_of_the_one_before(rows: Rows) -> None:
    earlier, later = (row for row in rows["spans"] if bundles.target_of(row) == ANN and row["version"] == 2)
    later["last_asked_at"] = earlier["last_at"]


@forged("o2/cat, version 1: observation: the baseline should open a span that is not interrupted")
def a_first_span_that_was_interrupted(rows: Rows) -> None:
    first(rows, "spans", CAT)["interrupted"] = True


@forged("o1/ann, version 2: change_set.observed_at should be after 2026-03-01 00:31:18+00:00, the time recorded before")
def a_version_before_the_end_of_the_one_before(rows: Rows) -> None:
    first(rows, "change_sets", ANN, version=2)["observed_at"] = first(rows, "spans", ANN, version=1)["last_at"]


@forged("run 2 (seal 2): unchanged should be 2, but is 3")
def more_unchanged_than_targets(rows: Rows) -> None:
    run(rows, 2)["unchanged"] = 3


@forged("run 9 (seal 9): unchanged should be 0, but is 1")
def an_aborted_run_that_says_what_was_unchanged(rows: Rows) -> None:
    run(rows, 9)["unchanged"] = 1


@forged("run 3 (seal 3): status should be 'partial', but is 'succeeded'")
def a_status_that_the_sums_deny(rows: Rows) -> None:
    run(rows, 3)["status"] = "succeeded"


@forged("run 2 (seal 2): targets should be 2, but is 3")
def more_targets_than_members(rows: Rows) -> None:
    run(rows, 2).update(targets=3, unchanged=3)


@forged("run 3 (seal 3): failed should be 1, but is 0")
def a_failure_that_is_not_counted(rows: Rows) -> None:
    run(rows, 3).update(failed=0, unchanged=1, status="succeeded")


@forged("o1/ann, version 4: changes nothing")
def a_version_that_changes_nothing(rows: Rows) -> None:
    three, four = (first(rows, "change_sets", ANN, version=version) for version in (3, 4))
    four.update(dict.fromkeys(check.KINDS, 0), data_hash="0" * 64)
    four.update({name: three[name] for name in ("flow_count", "state_digest")})
    rows["changes"] = [row for row in rows["changes"] if bundles.target_of(row) != ANN or row["version"] != 4]


@forged("o1/ann, version 2, workflow '1': kind should be ['cycle_changed', 'renamed'], but is ['cycle_changed']")
def a_kind_of_change_left_out(rows: Rows) -> None:
    first(rows, "change_sets", ANN, version=2)["renamed"] = 0
    run(rows, 3)["renamed"] = 0
    rows["changes"].remove(first(rows, "changes", ANN, version=2, kind="renamed"))


@forged("o1/ben [电], version 2, workflow '101': in its answer should be")
def a_list_that_the_answer_does_not_have_and_nothing_is_held(rows: Rows) -> None:
    rows["holds"] = [row for row in rows["holds"] if bundles.target_of(row) != BEN]


@forged("o1/ann, version 2, workflow '10': in its answer should be")
def a_workflow_that_the_answer_has_otherwise_and_that_is_called_held(rows: Rows) -> None:
    rows["holds"].insert(0, {**first(rows, "holds", ANN, kind="held"), "run_id": 3, "flow_ids": ["10"]})
    first(rows, "changes", ANN, version=2, flow_id="10")["new_name"] = "other"
    flows = bundles.state_at(rows, ANN, 2).values()
    first(rows, "change_sets", ANN, version=2)["state_digest"] = chain.state_digest(flows)


@forged("o1/ben [电], run 6: missing should be 7, but is 8")
def more_missing_than_is_held(rows: Rows) -> None:
    first(rows, "issues", BEN, run_id=6)["missing"] = 8


@forged("o1/ben [电], hold: flow_ids should be")
def a_held_set_out_of_order(rows: Rows) -> None:
    first(rows, "holds", BEN, run_id=6)["flow_ids"].reverse()


@forged("seal 7: format should be 1, but is 2")
def a_seal_of_a_format_that_nobody_knows(rows: Rows) -> None:
    rows["seals"][6]["format"] = 2


@forged("o1/ann, version 2: change_set.format should be 1, but is 2")
def a_version_of_a_format_that_nobody_knows(rows: Rows) -> None:
    first(rows, "change_sets", ANN, version=2)["format"] = 2


@forged("o2/cat, version 2: observation: rows of a version that is not there")
def a_span_of_a_version_that_is_not_there(rows: Rows) -> None:
    rows["spans"].append({**first(rows, "spans", CAT), "version": 2})


@forged("o2/cat, version 1: observation.longest_gap_seconds cannot be 5")
def a_gap_in_one_observation(rows: Rows) -> None:
    first(rows, "spans", CAT)["longest_gap_seconds"] = 5


@forged("o2/cat, version 1: observation: 1 observations from")
def one_observation_with_a_length(rows: Rows) -> None:
    first(rows, "spans", CAT)["last_at"] += dt.timedelta(seconds=1)


@forged("trails.jsonl: first_seal should be 1, but is 2", rehash=False)
def a_trail_without_a_beginning(rows: Rows) -> None:
    rows["trails"][0]["first_seal"] = 2


# --------------------------------------------------------------------------------------------- what is around the rows

SEALS = story().rows["seals"]


@redrafted(r"run 6 \(seal 6\): is opened, and does not lie in the time", part)
def a_period_that_begins_later(draft: Draft) -> None:
    draft.fields["since"] = SEALS[6]["sealed_at"]


@redrafted(r"run 5 \(seal 5\): lies in the time of the bundle, and is not opened", part)
def a_period_that_begins_earlier(draft: Draft) -> None:
    draft.fields["since"] = SEALS[4]["sealed_at"]


@redrafted(r"run 1 \(seal 1\): lies in the time of the bundle, and is not opened", part)
def a_period_called_all_the_time(draft: Draft) -> None:
    draft.fields |= {"since": None, "until": None}


@redrafted(r"run 13 \(seal 13\): lies in the time of the bundle, and is not opened", part)
def a_period_that_ends_later(draft: Draft) -> None:
    draft.fields["until"] = SEALS[14]["sealed_at"]


@redrafted(r"run 11 \(seal 11\): is opened, and does not lie in the time", part)
def a_period_that_ends_earlier(draft: Draft) -> None:
    draft.fields["until"] = SEALS[10]["sealed_at"]


@redrafted(r"memberships\.jsonl, line 1: is of the organisation 'o1', and the bundle of 'o9'", one_organisation)
def another_organisation(draft: Draft) -> None:
    draft.fields["org_id"] = "o9"


@redrafted(r"memberships\.jsonl, line 3: is of the organisation 'o2', and the bundle of 'o1'")
def all_organisations_called_one(draft: Draft) -> None:
    draft.fields["org_id"] = "o1"


@redrafted(r"run 11 \(seal 11\): lies in the time of the bundle, and is not opened", one_organisation)
def one_organisation_called_all(draft: Draft) -> None:
    draft.fields["org_id"] = None


@redrafted(r"run 1 \(seal 1\): is opened, and does not lie in the time", one_organisation)
def an_organisation_with_a_shorter_period(draft: Draft) -> None:
    draft.fields["since"] = SEALS[6]["sealed_at"]


@redrafted(r"run 3 \(seal 3\): is not opened, and has rows in org_events\.jsonl", part)
def an_event_in_a_run_that_is_not_opened(draft: Draft) -> None:
    draft.rows["org_events"].insert(0, {**bundles.EVENT, "run_id": 3})


@redrafted(r"o1/ben \[电\], run 3 \(seal 3\): sync_issue: it was not asked, or has two verdicts", part)
def a_failure_in_a_run_that_is_not_opened(draft: Draft) -> None:
    draft.rows["issues"].append(first(story().rows, "issues", BEN, run_id=3))


@redrafted(r"manifest\.json: made_at is 2026-01-01 00:00:00\+00:00, before the last seal was made")
def a_bundle_made_before_its_last_seal(draft: Draft) -> None:
    draft.fields["made_at"] = "2026-01-01T00:00:00Z"


@redrafted(r"manifest\.json: last_seal should be")
def another_last_seal(draft: Draft) -> None:
    draft.fields["last_seal"] = {"id": 17, "seal": SEALS[16]["seal"]}


@redrafted(r"manifest\.json: cannot be read: should have bundle, made_at, since, until, org_id, last_seal, files")
def a_certificate_in_the_manifest(draft: Draft) -> None:
    draft.fields["certified"] = "ALL TIME, COMPLETE"


@redrafted(r"manifest\.json: cannot be read: should have bundle, .* and of each file its bytes and sha256")
def a_word_about_a_file_in_the_manifest(draft: Draft) -> None:
    draft.remake = lambda manifest: manifest["files"]["runs.jsonl"].update(note="complete")


@redrafted(r"README\.txt: is no file of a bundle")
def a_page_of_explanation(draft: Draft) -> None:
    draft.refile = lambda files: files.update({"README.txt": b"ALL TIME, COMPLETE, CERTIFIED"})


@redrafted(r"answers/[0-9a-f]{64}: should be bytes with this hash")
def another_answer_under_the_hash_of_one(draft: Draft) -> None:
    one, other = list(draft.answers)[:2]
    draft.answers[one] = draft.answers[other]


@redrafted(r"time stamp of seal 5: is not one of this seal")
def a_time_stamp_of_something_else(draft: Draft) -> None:
    draft.rows["timestamps"] = [{"seal_id": 5, "token": "AAAA"}]


def text_of(name: str, old: bytes, new: bytes) -> Callable[[dict[str, bytes]], object]:
    def replace(files: dict[str, bytes]) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new, 1)

    return replace


@redrafted(r"changes\.jsonl, line \d+: is not written as bundles are")
def a_text_in_escapes(draft: Draft) -> None:
    draft.refile = text_of("changes.jsonl", "三".encode(), rb"\u4e09")


@redrafted(r"runs\.jsonl, line 1: is not written as bundles are")
def lines_that_end_as_on_windows(draft: Draft) -> None:
    draft.refile = text_of("runs.jsonl", b"\n", b"\r\n")


@redrafted(r"seals\.jsonl, line 1: is not written as bundles are")
def spaces_in_a_line(draft: Draft) -> None:
    draft.refile = text_of("seals.jsonl", b":", b": ")


@redrafted(r"timestamps\.jsonl, line 1: is not written as bundles are")
def a_last_line_without_an_end(draft: Draft) -> None:
    draft.rows["timestamps"] = [{"seal_id": 5, "token": "AAAA"}]
    draft.refile = text_of("timestamps.jsonl", b"\n", b"")


@redrafted(r"trails\.jsonl, line 1: is no time")
def a_fraction_that_says_nothing(draft: Draft) -> None:
    draft.refile = text_of("trails.jsonl", b"00Z", b"00.000000Z")


@redrafted(r"trails\.jsonl, line 1: should have the keys trail_id, created_at, first_seal")
def a_reason_for_the_trail(draft: Draft) -> None:
    draft.refile = text_of("trails.jsonl", b"}", b',"reason":"copied"}')


@redrafted(r"manifest\.json: cannot be read: should have")
def a_run_that_is_said_to_be_under_way(draft: Draft) -> None:
    draft.fields["unsealed"] = ["2026-03-01T00:00:00Z"]


@redrafted(r"manifest\.json: cannot be read: is not written as bundles are")
def a_manifest_in_escapes(draft: Draft) -> None:
    def escaped(text: bytes) -> bytes:
        return text.replace(b"made_at", rb"\u006dade_at")

    draft.repack = lambda archive: repacked(archive, "manifest.json", escaped)


def repacked(
    archive: bytes,
    name: str,
    change: Callable[[bytes], bytes] = bytes,
    how: int = zipfile.ZIP_DEFLATED,
    **values: object,
) -> bytes:
    """The same archive, but for the content, the compression or another attribute of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            other, mine = zipfile.ZipInfo(info.filename), info.filename == name
            for attribute, value in values.items() if mine else ():
                setattr(other, attribute, value)
            content = old.read(info)
            new.writestr(other, change(content) if mine else content, how if mine else zipfile.ZIP_DEFLATED)
    return file.getvalue()


@redrafted(r"manifest\.json: does not follow the file before it: something else is in the archive, too")
def bytes_before_the_archive(draft: Draft) -> None:
    draft.repack = lambda archive: b"#!/bin/sh\n" + archive


@redrafted(r"manifest\.json: does not follow the file before it")
def another_archive_before_it(draft: Draft) -> None:
    draft.repack = lambda archive: archive + archive


@redrafted(r"check\.py: does not follow the file before it")
def bytes_between_two_files(draft: Draft) -> None:
    def between(archive: bytes) -> bytes:
        """Move all but the first file by eight bytes, as if they had been there when the archive was written."""
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info))
                new.start_dir += 8 if info.filename == "manifest.json" else 0
        return file.getvalue()

    draft.repack = between


@redrafted(r"the archive: has something behind its files, or a comment")
def bytes_behind_the_archive(draft: Draft) -> None:
    draft.repack = lambda archive: archive + b"ALL TIME"


@redrafted(r"the archive: has something behind its files, or a comment")
def a_comment_on_the_archive(draft: Draft) -> None:
    draft.repack = lambda archive: archive[:-2] + b"\x08\x00COMPLETE"


@redrafted(r"check\.py: does not follow the file before it")
def a_comment_on_a_file(draft: Draft) -> None:
    draft.repack = lambda archive: repacked(archive, "check.py", comment=b"certified")


@redrafted(r"check\.py: does not follow the file before it")
def an_additional_field_of_a_file(draft: Draft) -> None:
    draft.repack = lambda archive: repacked(archive, "check.py", extra=b"\xfe\xca\x04\x00true")


@redrafted(r"check\.py: is not all that is in its place in the archive")
def bytes_behind_what_is_compressed(draft: Draft) -> None:
    def hide(archive: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(archive)) as whole:
            content, crc = whole.read("check.py"), whole.getinfo("check.py").CRC
        compressor = zlib.compressobj(wbits=-15)
        more = compressor.compress(content) + compressor.flush() + b"hidden"
        data = bytearray(repacked(archive, "check.py", lambda content: more, zipfile.ZIP_STORED))
        for header in (data.index(b"check.py") - 30 + 8, data.rindex(b"check.py") - 46 + 10):
            struct.pack_into("<H", data, header, zipfile.ZIP_DEFLATED)
            struct.pack_into("<L", data, header + 6, crc)
            struct.pack_into("<L", data, header + 14, len(content))
        return bytes(data)

    draft.repack = hide
