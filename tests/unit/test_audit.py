"""The checker of audit bundles: an untouched trail passes, and nothing in it can be altered without a finding that says
where. The checker shares no code with the program; the bundles are hashed with the program's own functions."""

from __future__ import annotations

import copy
import datetime as dt
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from etl.audit import check
from etl.domain.model import Flow
from etl.signing.keys import SigningKey
from tests.support import bundles
from tests.support.bundles import ANN, BEN, CAT, MINUTE, START, Row, Rows, Story

RFC_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@functools.cache
def story() -> Story:
    return bundles.some_days(SigningKey(RFC_KEY).sign)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seals of the untouched trail, kept elsewhere."""
    file = tmp_path_factory.mktemp("kept") / "seals.jsonl"
    file.write_bytes(bundles.kept_lines(story().rows))
    return file


@pytest.fixture(scope="module")
def public_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "seal.pem.pub"
    file.write_bytes(RFC_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Packs rows into a bundle and checks it: the exit code, and what was printed."""

    def checked(
        rows: Rows, *options: object, answers: dict[str, bytes] | None = None, **fields: object
    ) -> tuple[int, str]:
        file = bundles.pack(tmp_path / "bundle.zip", rows, story().answers if answers is None else answers, **fields)
        code = check.main([str(file), *map(str, options)])
        return code, capsys.readouterr().out

    return checked


Said = Callable[..., tuple[int, str]]


# ------------------------------------------------------------------------------------------------- an untouched trail


def test_an_untouched_trail_passes(said: Said, kept: Path, public_key: Path) -> None:
    code, printed = said(story().rows, "--kept", kept, "--public-key", public_key)
    assert (code, printed) == (0, "18 seals, 3 targets, 10 change sets, 40 changes checked: everything holds.\n")


def test_a_trail_that_was_copied_from_an_empty_one_passes(said: Said) -> None:
    empty = Story()
    empty.begin_trail("0b0f6a1e-0c55-4f6e-8f21-1f9a3f6f7d02", "copied")
    empty.run({ANN: []}, joins=[ANN])
    assert said(empty.rows, answers=empty.answers)[0] == 0
    assert said(Story().rows)[0] == 0


@pytest.mark.parametrize(("first", "last"), [*((n, 18) for n in range(1, 19)), (1, 6), (4, 9), (7, 7), (11, 13)])
def test_a_bundle_may_be_about_any_part_of_the_time(said: Said, kept: Path, first: int, last: int) -> None:
    seals = story().rows["seals"]
    begin, end = seals[first - 1]["sealed_at"], seals[last - 1]["sealed_at"] + MINUTE
    code, printed = said(bundles.between(story(), begin, end), "--kept", kept, since=begin, until=end)
    assert code == 0, printed
    assert f"{17 + first - last} runs are sealed, but not opened" in printed or last - first == 17


def test_a_list_that_is_older_than_the_time_of_the_bundle_is_found_by_a_kept_head(said: Said, kept: Path) -> None:
    """Nothing in a seal says that a run made no version, so a bundle of later runs may open with a replaced one."""
    aged, a, b = Story(), Flow("1", "a", "D", True), Flow("2", "b", "D", True)
    for flows in ([a], [a, b], [b], [b], [b]):
        aged.run({ANN: flows}, joins=[] if aged.rows["runs"] else [ANN])
    head = bundles.kept_heads(aged.rows, "2026-03-30T00:00:00Z")
    file = kept.with_name("aged.jsonl")
    file.write_bytes(json.dumps(head[0]).encode() + b"\n" + bundles.kept_lines(aged.rows))
    since = aged.rows["seals"][3]["sealed_at"]
    right = bundles.between(aged, since, since + dt.timedelta(days=9))
    code, printed = said(right, "--kept", file, answers={}, since=since)
    assert (code, "1 lists have no version in the time of the bundle" in printed) == (0, True), printed

    last = aged.rows["spans"][-1]
    older = copy.deepcopy(aged)
    older.rows["change_sets"], older.rows["changes"] = (
        [row for row in older.rows[name] if row["version"] < 3] for name in ("change_sets", "changes")
    )
    older.rows["spans"] = older.rows["spans"][:2]
    older.rows["spans"][1] |= {name: last[name] for name in ("last_at", "last_asked_at")}
    older.rows["spans"][1] |= {"observations": 5, "longest_gap_seconds": 1000}
    wrong = bundles.between(older, since, since + dt.timedelta(days=9))
    code, printed = said(wrong, "--kept", file, answers={}, since=since)
    assert (code, "o1/ann: the bundle ends with version 2, before version 3" in printed) == (1, True), printed


def test_a_part_of_the_time_must_be_opened_whole(said: Said) -> None:
    begin = story().rows["seals"][6]["sealed_at"]
    code, printed = said(bundles.between(story(), begin + MINUTE, bundles.START + 99 * MINUTE * 60), since=begin)
    assert (code, "run 7 (seal 7): lies in the time of the bundle, and is not opened" in printed) == (1, True)


def test_observations_of_an_unfinished_run_are_reported_once(said: Said) -> None:
    rows = copy.deepcopy(story().rows)
    span = of(rows, "spans", CAT)[0]
    later = rows["seals"][-1]["sealed_at"] + 60 * MINUTE
    span |= {"last_at": later, "last_asked_at": later - MINUTE, "observations": 2}
    span["longest_gap_seconds"] = (later - span["first_at"]) // dt.timedelta(seconds=1)
    code, printed = said(rows, unsealed=[later - 5 * MINUTE])
    assert (code, "1 runs had not ended" in printed) == (0, True)
    assert "observation.observations from" in said(rows)[1]
    span |= {"observations": 3, "longest_gap_seconds": span["longest_gap_seconds"] - 1}
    assert "should be 1 to 2, by the sealed runs" in said(rows, unsealed=[later - 5 * MINUTE])[1]


def test_without_kept_seals_it_says_what_it_does_not_prove(said: Said) -> None:
    code, printed = said(story().rows)
    assert code == 0
    assert "a trail that was rewritten whole would pass" in printed


def test_a_seal_on_the_command_line_is_compared(said: Said) -> None:
    right = story().rows["seals"][6]["seal"]
    assert said(story().rows, "--seal", f"7:{right}")[0] == 0
    for wrong in (f"8:{right}", f"7:{'0' * 64}", f"0:{right}", f"99:{right}"):
        code, printed = said(story().rows, "--seal", wrong)
        assert (code, "--seal: " in printed) == (1, True)


def test_kept_lines_that_are_younger_than_the_bundle_are_counted(said: Said, kept: Path) -> None:
    young = {"trail_id": story().rows["trails"][-1]["trail_id"], "id": 900, "seal": "0" * 64}
    line = json.dumps({**young, "sealed_at": "2027-01-01T00:00:00Z"}) + "\n"
    both, alone = kept.with_name("both.jsonl"), kept.with_name("young.jsonl")
    both.write_text(kept.read_text() + line)
    alone.write_text(line)
    code, printed = said(story().rows, "--kept", both)
    assert (code, "1 kept lines are younger than the bundle, made at 2026-04-01" in printed) == (0, True), printed
    code, printed = said(story().rows, "--kept", alone)
    assert (code, "all 1 kept lines are younger than the bundle" in printed) == (1, True), printed
    for file in (both, alone):
        code, printed = said(story().rows, "--kept", file, made_at="2027-01-01T00:00:00Z")
        assert (code, "ends with seal 18, before seal 900" in printed) == (1, True)


def test_kept_heads_are_compared_with_the_versions_that_they_name(said: Said, kept: Path) -> None:
    head, *others = bundles.kept_heads(story().rows, "2026-03-30T00:00:00Z")
    name, version = f"{head['org_id']}/{head['user_id']}", head["version"]
    file = kept.with_name("heads.jsonl")

    def compared(line: Row, **fields: object) -> tuple[int, str]:
        file.write_text("".join(json.dumps(each) + "\n" for each in (*others, line)) + kept.read_text())
        return said(story().rows, "--kept", file, **fields)

    code, printed = compared(head)
    assert (code, "kept heads" in printed) == (0, False), printed
    code, printed = compared({**head, "hash": "0" * 64})
    assert (code, f"kept line 3: {name}, version {version} should have the hash '000" in printed) == (1, True), printed
    later = {**head, "version": version + 1}
    code, printed = compared(later)
    assert (code, f"the bundle ends with version {version}, before version {version + 1}" in printed) == (1, True)
    code, printed = compared({**head, "user_id": "zoe"})
    assert (code, "zoe" in printed, "the bundle ends with version 0" in printed) == (1, True, True), printed
    for line, fields in (({**later, "taken_at": "2026-05-01T00:00:00Z"}, {}), (later, {"unsealed": [START]})):
        code, printed = compared(line, **fields)
        assert (code, "1 kept heads are of versions that the bundle does not contain" in printed) == (0, True), printed


def test_a_kept_file_with_heads_alone_must_have_one_that_can_be_compared(said: Said, kept: Path) -> None:
    heads = bundles.kept_heads(story().rows, "2026-03-30T00:00:00Z")
    file = kept.with_name("heads-alone.jsonl")
    file.write_text(json.dumps(heads[0]))
    assert said(story().rows, "--kept", file)[0] == 0
    file.write_text(json.dumps({**heads[0], "version": 99, "taken_at": "2026-05-01T00:00:00Z"}))
    code, printed = said(story().rows, "--kept", file)
    assert (code, "nothing was compared with it" in printed) == (1, True)


def test_a_kept_file_without_lines_is_a_finding(said: Said, kept: Path) -> None:
    empty = kept.with_name("empty.jsonl")
    empty.write_text("")
    code, printed = said(story().rows, "--kept", empty)
    assert (code, "empty.jsonl: has no kept line, so nothing was compared with it" in printed) == (1, True)


def test_a_kept_line_of_another_trail_is_a_finding_whenever_the_bundle_was_made(said: Said, kept: Path) -> None:
    """A bundle of a wholly forged trail, which claims to be older than what was kept of the true one."""
    forged = Story()
    forged.rows["trails"][0]["trail_id"] = "99999999-0c55-4f6e-8f21-1f9a3f6f7d02"
    forged.run({ANN: []}, joins=[ANN])
    for made_at in ("2000-01-01T00:00:00Z", "2030-01-01T00:00:00Z"):
        code, printed = said(forged.rows, "--kept", kept, answers=forged.answers, made_at=made_at)
        assert (code, printed.count("and the bundle of another")) == (1, 18), printed


def test_a_bundle_is_not_older_than_its_last_seal(said: Said) -> None:
    code, printed = said(story().rows, made_at="2026-01-01T00:00:00Z")
    assert code == 1
    assert "manifest.json: made_at is 2026-01-01 00:00:00+00:00, before the last seal was made" in printed


# --------------------------------------------------------------------------------------------- the fourteen, and thirty

Tamper = Callable[[Rows], None]
TAMPERINGS: dict[str, tuple[Tamper, str]] = {}


def tampering(place: str) -> Callable[[Tamper], Tamper]:
    """Name what must be found, when the rows are altered and no hash is computed anew."""

    def kept(tamper: Tamper) -> Tamper:
        TAMPERINGS[tamper.__name__] = (tamper, place)
        return tamper

    return kept


def of(rows: Rows, name: str, target: object = None, **values: object) -> list[Row]:
    listed = [row for row in rows[name] if target is None or bundles.target_of(row) == target]
    return [row for row in listed if all(row[column] == value for column, value in values.items())]


def run(rows: Rows, number: int) -> Row:
    return of(rows, "runs", id=number)[0]


@tampering(r"o1/ann, after .* 1 runs that have neither an observation nor an issue")
def all_failures_deleted_and_runs_called_succeeded(rows: Rows) -> None:
    rows["issues"] = []
    for row in rows["runs"]:
        if row["status"] in ("failed", "partial"):
            row |= {"status": "succeeded", "unchanged": row["unchanged"] + row["failed"] + row["held"] + row["stale"]}
            row |= {"failed": 0, "held": 0, "stale": 0}


@tampering(r"o1/ann, version 2: change_set\.observed_at is .*, not in the time of run 7")
def runs_of_two_versions_exchanged(rows: Rows) -> None:
    two, three = of(rows, "change_sets", ANN, version=2)[0], of(rows, "change_sets", ANN, version=3)[0]
    two["run_id"], three["run_id"] = three["run_id"], two["run_id"]


@tampering(r"run 13 \(seal 13\): events_digest")
def a_retirement_moved_by_five_months(rows: Rows) -> None:
    of(rows, "memberships", BEN, kind="retired")[0]["at"] -= dt.timedelta(days=150)


@tampering(r"o1/ann, version 4: observation\.observations from .* should be 3, .* but is 90")
def an_open_span_stretched_back_by_two_months(rows: Rows) -> None:
    span = of(rows, "spans", ANN, version=4)[0]
    span |= {"observations": 90, "longest_gap_seconds": 40}


@tampering(r"o2/cat, version 1: observation\.observations from .* should be 1, .* but is 2")
def a_span_stretched_into_a_run_that_failed(rows: Rows) -> None:
    span, failed = of(rows, "spans", CAT)[0], run(rows, 14)
    span |= {"last_at": failed["finished_at"], "last_asked_at": failed["started_at"], "observations": 2}
    span["longest_gap_seconds"] = (span["last_at"] - span["first_at"]) // dt.timedelta(seconds=1)


@tampering(r"o2/cat, version 1: observation\.observations from .* should be 1")
def a_span_stretched_by_two_months(rows: Rows) -> None:
    span = of(rows, "spans", CAT)[0]
    later = span["last_at"] + dt.timedelta(days=60)
    span |= {"last_at": later, "last_asked_at": later - MINUTE, "observations": 2, "longest_gap_seconds": 5_184_000}


@tampering(r"o1/ann, version 4: observation\.last_at is .*, when no sealed run observed it")
def an_observation_at_a_time_of_no_run(rows: Rows) -> None:
    span = of(rows, "spans", ANN, version=4)[0]
    span |= {"last_at": span["last_at"] + dt.timedelta(hours=1), "longest_gap_seconds": 4000}


@tampering(r"o2/cat, version 2: .*run 14 \(seal 14\)|run 14 .*change_sets_digest|o2/cat, .*observation")
def a_version_inserted_in_a_run_that_is_sealed(rows: Rows) -> None:
    insert_version(rows, CAT, run(rows, 14))


@tampering(r"run 2 \(seal 2\): change_sets_digest|o9/eve.*run 2 \(seal 2\) was not to ask")
def a_user_inserted_into_a_run_that_is_sealed(rows: Rows) -> None:
    insert_version(rows, bundles.Target("o9", "eve"), run(rows, 2))


@tampering(r"run 2 \(seal 2\): events_digest")
def a_user_inserted_with_a_membership(rows: Rows) -> None:
    eve = bundles.Target("o9", "eve")
    rows["memberships"].append({**rows["memberships"][0], **eve._asdict(), "id": 99, "run_id": 2})


def insert_version(rows: Rows, target: bundles.Target, row: Row) -> None:
    at, before = row["started_at"] + MINUTE / 10, of(rows, "change_sets", target)
    story = Story()
    story.rows, story.now = rows, at
    seen = story.targets.setdefault(target, bundles.Seen())
    if before:
        seen.version, seen.hash, seen.spans = before[-1]["version"], before[-1]["hash"], of(rows, "spans", target)
    story._observe(row["id"], target, [Flow("7", "x", "D", True)], None)


@tampering(r"o1/ann, version 2, workflow '1': after its change")
def a_name_altered_in_one_of_two_changes(rows: Rows) -> None:
    of(rows, "changes", ANN, version=2, flow_id="1", kind="renamed")[0]["new_name"] = "other"


@tampering(r"o1/ann, version 2: change_set\.state_digest")
def a_name_altered_in_a_change(rows: Rows) -> None:
    of(rows, "changes", ANN, version=2, flow_id="10")[0]["new_name"] = "other"


@tampering(r"o1/ann, version 2: change_set\.added should be 0, but is 1")
def a_change_deleted(rows: Rows) -> None:
    rows["changes"].remove(of(rows, "changes", ANN, version=2, flow_id="10")[0])


@tampering(r"o1/ann, version 2: change_set\.added should be 2, but is 1")
def a_change_added(rows: Rows) -> None:
    rows["changes"].append({**of(rows, "changes", ANN, version=2, flow_id="10")[0], "flow_id": "11"})


@tampering(r"o1/ben \[电\], version 5: observation: rows of a version that is not there")
def the_last_version_deleted(rows: Rows) -> None:
    for name in ("change_sets", "changes"):
        rows[name] = [row for row in rows[name] if row not in of(rows, name, BEN, version=5)]


@tampering(r"o1/ann, version 2: change_set\.version should be 2, but is 3")
def a_version_deleted_in_the_middle(rows: Rows) -> None:
    for name in ("change_sets", "changes", "spans"):
        rows[name] = [row for row in rows[name] if row not in of(rows, name, ANN, version=2)]


@tampering(r"run 11 \(seal 11\): change_sets_digest|o2/cat, to the end|o2/cat, and before")
def a_user_deleted(rows: Rows) -> None:
    for name in ("change_sets", "changes", "spans"):
        rows[name] = [row for row in rows[name] if bundles.target_of(row) != CAT]


@tampering(r"run 14 \(seal 14\): targets_digest")
def a_user_deleted_with_every_trace(rows: Rows) -> None:
    for name in ("change_sets", "changes", "spans", "issues", "memberships", "holds"):
        rows[name] = [row for row in rows[name] if bundles.target_of(row) != CAT]


@tampering(r"o1/ben \[电\], version 3: change_set\.hash")
def an_approver_renamed(rows: Rows) -> None:
    of(rows, "change_sets", BEN, version=3)[0]["approved_by"] = "Yannick"


@tampering(r"o1/ben \[电\], version 3: change_set\.hash")
def an_approval_taken_away(rows: Rows) -> None:
    of(rows, "change_sets", BEN, version=3)[0] |= {"approved_by": None, "approved_scope": None}
    rows["holds"] = [row for row in rows["holds"] if row["kind"] != "approved"]


@tampering(r"o1/ben \[电\], version 3: change_set\.approved_scope")
def more_approved_than_was_held(rows: Rows) -> None:
    of(rows, "holds", BEN, kind="approved")[0]["flow_ids"].append("流")


@tampering(r"run 6 \(seal 6\): events_digest|o1/ben \[电\], run 6: missing")
def a_hold_made_smaller(rows: Rows) -> None:
    of(rows, "holds", BEN, kind="held")[0]["flow_ids"].pop()


@tampering(r"run 6 \(seal 6\): issues_digest|o1/ben \[电\], run 6: missing should be 7, but is 6")
def fewer_missing_in_an_issue(rows: Rows) -> None:
    of(rows, "issues", BEN, run_id=6)[0]["missing"] -= 1


@tampering(r"run 3 \(seal 3\): issues_digest")
def another_reason_of_a_failure(rows: Rows) -> None:
    of(rows, "issues", BEN, run_id=3)[0]["error_code"] = "timeout"


@tampering(r"run 8 \(seal 8\): issues_digest")
def another_verdict(rows: Rows) -> None:
    of(rows, "issues", BEN, run_id=8)[0]["verdict"] = "stale"


@tampering(r"o1/ann, run 2|o1/ann, version 1: observation\.observations from")
def a_failure_invented(rows: Rows) -> None:
    rows["issues"].append({**ANN._asdict(), "run_id": 2, "verdict": "failed", "error_code": "62101", "missing": 0})


@tampering(r"o1/ann, version 2: change_set\.hash")
def one_observation_more(rows: Rows) -> None:
    of(rows, "spans", ANN, version=1)[0]["observations"] += 1


@tampering(r"o1/ann, after .* neither an observation nor an issue|o1/ann, version 4: observation\.first_at")
def a_span_of_the_present_version_shortened(rows: Rows) -> None:
    span = of(rows, "spans", ANN, version=4)[0]
    span |= {
        "last_at": span["first_at"],
        "last_asked_at": span["first_at"],
        "observations": 1,
        "longest_gap_seconds": 0,
    }


@tampering(r"o2/cat, version 1.*|o2/cat, and before .* neither an observation")
def the_span_of_a_quiet_user_deleted(rows: Rows) -> None:
    rows["spans"] = [row for row in rows["spans"] if bundles.target_of(row) != CAT]


@tampering(r"o1/ann, version 2: change_set\.hash")
def an_interruption_denied(rows: Rows) -> None:
    """The bundle's other rules would find it, were the hash computed anew."""
    of(rows, "change_sets", ANN, version=2)[0]["data_hash"] = "0" * 64


@tampering(r"o1/ann, version 2: observation\.interrupted should be True")
def an_outage_denied(rows: Rows) -> None:
    of(rows, "spans", ANN, version=2)[1]["interrupted"] = False


@tampering(r"o1/ann, version 2: change_set\.last_unchanged_at")
def a_change_made_to_look_faster(rows: Rows) -> None:
    of(rows, "change_sets", ANN, version=2)[0]["last_unchanged_at"] += MINUTE


@tampering(r"o1/ann, version 2: change_set\.hash|o1/ann, version 2: observation")
def a_version_with_another_date(rows: Rows) -> None:
    of(rows, "change_sets", ANN, version=2)[0]["observed_at"] -= dt.timedelta(seconds=1)


@tampering(r"seal 9: id should be 9, but is 10")
def a_run_deleted_with_its_seal(rows: Rows) -> None:
    for name in ("runs", "seals"):
        del rows[name][8]


@tampering(r"run 18: has no seal|manifest\.json: last_seal|seal 18")
def the_last_seal_deleted(rows: Rows) -> None:
    del rows["seals"][17]


@tampering(r"seal 8: its run 8 is missing")
def a_run_deleted(rows: Rows) -> None:
    del rows["runs"][7]


@tampering(r"run 3 \(seal 2\): seal")
def two_seals_exchanged(rows: Rows) -> None:
    two, three = rows["seals"][1], rows["seals"][2]
    two["run_id"], three["run_id"] = three["run_id"], two["run_id"]


@tampering(r"run 9 \(seal 9\): seal")
def an_aborted_run_called_succeeded(rows: Rows) -> None:
    run(rows, 9)["status"] = "succeeded"


@tampering(r"run 4 \(seal 4\): seal")
def a_run_moved_by_an_hour(rows: Rows) -> None:
    run(rows, 4)["started_at"] -= dt.timedelta(hours=1)


@tampering(r"run 4 \(seal 4\): seal")
def missed_slots_forgotten(rows: Rows) -> None:
    run(rows, 4)["missed"] += 3


@tampering(r"run 10 \(seal 10\): seal")
def an_approval_called_a_schedule(rows: Rows) -> None:
    run(rows, 10)["origin"] = "schedule"


@tampering(r"run 11 \(seal 11\): targets_digest|o2/cat, .*was not asked|o2/cat, version 1: run 11")
def a_user_left_out_of_what_was_to_be_asked(rows: Rows) -> None:
    run(rows, 11)["scope"]["user_id"] = "nobody"


@tampering(r"run 12 \(seal 12\): events_digest")
def an_event_of_the_organisation_made_certain(rows: Rows) -> None:
    rows["org_events"][0]["proven_for_all"] = False


@tampering(r"run 12 \(seal 12\): events_digest")
def another_author_in_a_detail(rows: Rows) -> None:
    rows["details"][0]["update_user"] = "u1"


@tampering(r"run 12 \(seal 12\): events_digest")
def a_detail_deleted(rows: Rows) -> None:
    rows["details"].clear()


@tampering(r"run 5 \(seal 5\): issues_digest[^$]*^run 15 \(seal 15\): events_digest")
def issues_pruned_unsaid(rows: Rows) -> None:
    rows["pruned_issues"].clear()


@tampering(r"run 3 \(seal 3\): its issues, which were pruned")
def a_pruning_invented(rows: Rows) -> None:
    rows["pruned_issues"].append({"run_id": 15, "pruned_run_id": 3, "at": START})


@tampering(r"seal 5: is not signed, though a seal before it was")
def a_signature_taken_away(rows: Rows) -> None:
    rows["seals"][4] |= {"signature": None, "key_id": None}


@tampering(r"run 13 \(seal 13\): seal|seal 13: parent")
def a_copy_that_says_it_is_the_first(rows: Rows) -> None:
    del rows["trails"][1]


@tampering(r"seal 1: parent")
def a_trail_that_began_earlier(rows: Rows) -> None:
    rows["trails"][0]["created_at"] -= dt.timedelta(days=365)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampering_is_found_and_its_place_is_named(said: Said, name: str) -> None:
    tamper, place = TAMPERINGS[name]
    rows = copy.deepcopy(story().rows)
    tamper(rows)
    code, printed = said(rows)
    assert code == 1
    assert re.search(rf"^({place})", printed, re.MULTILINE), printed


SIGNATURES_ALONE = {"a_signature_taken_away", "the_last_seal_deleted"}


@pytest.mark.parametrize("name", sorted(TAMPERINGS.keys() - SIGNATURES_ALONE))
def test_a_tampering_with_every_hash_computed_anew_is_found_by_what_was_kept(
    said: Said, kept: Path, public_key: Path, name: str
) -> None:
    rows = copy.deepcopy(story().rows)
    TAMPERINGS[name][0](rows)
    bundles.forge(rows)
    code, printed = said(rows, "--kept", kept)
    assert code == 1
    assert re.search(r"seal \d+ should be '|^run \d+: has no seal", printed, re.MULTILINE), printed
    code, printed = said(rows, "--public-key", public_key)
    assert code == 1
