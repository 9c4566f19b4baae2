"""The checker of audit bundles: an untouched trail passes, and nothing in it can be altered without a finding that says
where. The checker shares no code with the program; the bundles are hashed with the program's own functions."""

from __future__ import annotations

import copy
import datetime as dt
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from etl.audit import check
from etl.domain.model import Flow
from tests.support import bundles
from tests.support.bundles import ANN, CAT, MINUTE, Row, Rows, Story
from tests.support.tamperings import KEY, TAMPERINGS, Which, one_organisation, part, story

Checked = Callable[..., tuple[int, str]]
PATTERNS = [re.sub(r"\\\{\w+\\\}", ".*", re.escape(text)) for text in check.SAID.values()]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seals of the untouched trail, kept elsewhere."""
    file = tmp_path_factory.mktemp("kept") / "seals.jsonl"
    file.write_bytes(bundles.kept_lines(story().rows))
    return file


@pytest.fixture(scope="module")
def public_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "seal.pem.pub"
    file.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Checked:
    """Checks a file: the exit code, and what was printed, each line of which is a statement or a finding."""

    def run(file: Path, *options: object) -> tuple[int, str]:
        code, printed = check.main([str(file), *map(str, options)]), capsys.readouterr().out
        unknown = [line for line in printed.splitlines() if not any(map(partial(re.fullmatch, string=line), PATTERNS))]
        assert bool(unknown) == bool(code), unknown
        return code, printed

    return run


@pytest.fixture
def said(tmp_path: Path, checked: Checked) -> Checked:
    """Packs rows into a bundle and checks it."""

    def packed(
        rows: Rows, *options: object, answers: dict[str, bytes] | None = None, **fields: object
    ) -> tuple[int, str]:
        kept = story().answers if answers is None else answers
        return checked(bundles.pack(tmp_path / "bundle.zip", rows, kept, **fields), *options)

    return packed


# ------------------------------------------------------------------------------------------------- an untouched trail


WHOLE = """\
Compared: 18 kept seals, 0 kept heads, 18 signatures. They confirm the seals up to 18 of 18.
Proven: period: all 18 runs that were sealed from 2026-03-01 00:16:12+00:00 to 2026-03-01 04:51:00+00:00. 0 earlier \
and 0 later ones are not part of it.
Proven: organisations: 'o1', 'o2'.
Proven: users: 3, with 3 lists (what a user is shown: all workflows, or those of a search).
Proven: runs: 11 succeeded, 5 in part, 1 failed, 1 cut short.
Proven: answers: to 23 of 30 requests; 9 with changes, 11 without, 3 held.
Proven: failures: 4 requests without a valid answer, 1 whose answer came too late.
Proven: silences: 0 times a run was due and did not come, 2 requests of runs that were cut short have no result.
Proven: changes: 10 versions of lists, with 10 workflows added, 10 removed, 2 cycles changed, 3 renamed, 0 made \
editable or not.
Proven: holds: 9 removals and changes began to wait for a person, 5 came back, 4 were approved.
Proven: approvals: 1, by 'Zoë'.
Proven: acknowledgements: 4, by 'Zoë'; 1 of them revoked. They cover 1 of the 1 events of organisations that are here.
Proven: kept answers: 10 of 10 versions have their answer, and 6 of 6 holds.
Claimed: made at 2026-04-01 00:00:00+00:00. The newest seal in it is 18, of 2026-03-01 04:51:00+00:00.
Claimed: who failed was deleted when its time had come, of runs: 1. How many failed is proven.
18 seals, 3 targets, 10 change sets, 40 changes checked: everything holds.
"""


def test_an_untouched_trail_passes(said: Checked, kept: Path, public_key: Path) -> None:
    code, printed = said(story().rows, "--kept", kept, "--public-key", public_key)
    assert (code, printed) == (0, WHOLE)


def test_a_trail_that_was_copied_from_an_empty_one_passes(said: Checked) -> None:
    empty = Story()
    empty.begin_trail("0b0f6a1e-0c55-4f6e-8f21-1f9a3f6f7d02")
    empty.run({ANN: []}, joins=[ANN])
    assert said(empty.rows, answers=empty.answers)[0] == 0
    assert said(Story().rows)[0] == 0


@pytest.mark.parametrize(("first", "last"), [*((n, 18) for n in range(1, 19)), (1, 6), (4, 9), (7, 7), (11, 13)])
def test_a_bundle_may_be_about_any_part_of_the_time(said: Checked, kept: Path, first: int, last: int) -> None:
    seals = story().rows["seals"]
    begin, end = seals[first - 1]["sealed_at"], seals[last - 1]["sealed_at"] + MINUTE
    code, printed = said(bundles.between(story(), begin, end), "--kept", kept, since=begin, until=end)
    assert code == 0, printed
    assert f"Proven: period: all {1 + last - first} runs that were sealed from " in printed
    assert f" {first - 1} earlier and {18 - last} later ones are not part of it." in printed


def test_the_period_of_one_organisation_is_called_a_claim(tmp_path: Path, checked: Checked) -> None:
    code, printed = checked(one_organisation().write(tmp_path / "bundle.zip"))
    assert (code, "Proven: organisations: 'o1'.\n" in printed) == (0, True), printed
    assert "Claimed: period: the first run to the last run. 16 of the 18 runs" in printed
    assert "Not proven: that the 2 runs of the period that are not open here asked nobody of this" in printed


def test_answers_that_were_left_out_are_counted(tmp_path: Path, checked: Checked) -> None:
    draft = part()
    draft.answers = dict(list(draft.answers.items())[:-1])
    assert (
        ": 6 of 7 versions have their answer, and 6 of 6 holds.\n" in checked(draft.write(tmp_path / "bundle.zip"))[1]
    )
    draft.answers = {}
    assert (
        ": 0 of 7 versions have their answer, and 0 of 6 holds.\n" in checked(draft.write(tmp_path / "bundle.zip"))[1]
    )


def test_another_checker_in_the_bundle_is_told(tmp_path: Path, checked: Checked) -> None:
    draft = part()
    draft.refile = lambda files: files.update({"check.py": b"print('everything holds')\n"})
    assert "Not proven: what the check.py in the bundle does" in checked(draft.write(tmp_path / "bundle.zip"))[1]


def test_a_list_that_is_older_than_the_time_of_the_bundle_is_found_by_a_kept_head(said: Checked, kept: Path) -> None:
    """Nothing in a seal says that a run made no version, so a bundle of later runs may open with a replaced one."""
    aged, a, b = Story(), Flow("1", "a", "D", True), Flow("2", "b", "D", True)
    for flows in ([a], [a, b], [b], [b], [b]):
        aged.run({ANN: flows}, joins=[] if aged.rows["runs"] else [ANN])
    head = bundles.kept_heads(aged.rows)
    file = kept.with_name("aged.jsonl")
    file.write_bytes(json.dumps(head[0]).encode() + b"\n" + bundles.kept_lines(aged.rows))
    since = aged.rows["seals"][3]["sealed_at"]
    right = bundles.between(aged, since, since + dt.timedelta(days=9))
    code, printed = said(right, "--kept", file, answers={}, since=since)
    assert (code, "between the one that is here and the period, of lists: 1." in printed) == (0, True), printed

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


def test_a_part_of_the_time_must_be_opened_whole(said: Checked) -> None:
    begin = story().rows["seals"][6]["sealed_at"]
    code, printed = said(bundles.between(story(), begin + MINUTE, bundles.START + 99 * MINUTE * 60), since=begin)
    assert (code, "run 7 (seal 7): lies in the time of the bundle, and is not opened" in printed) == (1, True)


def test_what_was_seen_after_the_period_is_not_counted(said: Checked) -> None:
    """A run that has not ended sees what it sees, and the bundle ends before it."""
    rows = copy.deepcopy(story().rows)
    span = Which("spans", CAT).first(rows)
    until = rows["seals"][-1]["sealed_at"] + MINUTE
    span |= {"last_at": until + MINUTE, "last_asked_at": until, "observations": 2}
    span["longest_gap_seconds"] = (span["last_at"] - span["first_at"]) // dt.timedelta(seconds=1)
    assert said(rows, until=until)[0] == 0
    assert "observation.observations from" in said(rows)[1]
    assert "observation.observations from" in said(rows, until=until + 2 * MINUTE)[1]


def test_without_kept_seals_it_says_what_it_does_not_prove(said: Checked) -> None:
    code, printed = said(story().rows)
    assert code == 0
    assert "a trail that was rewritten as a whole would pass" in printed


def test_a_seal_on_the_command_line_is_compared(said: Checked) -> None:
    right = story().rows["seals"][6]["seal"]
    assert said(story().rows, "--seal", f"7:{right}")[0] == 0
    for wrong in (f"8:{right}", f"7:{'0' * 64}", f"0:{right}", f"99:{right}"):
        code, printed = said(story().rows, "--seal", wrong)
        assert (code, "--seal: " in printed) == (1, True)


def test_kept_lines_that_are_younger_than_the_bundle_are_counted(said: Checked, kept: Path) -> None:
    young = {"trail_id": story().rows["trails"][-1]["trail_id"], "id": 900, "seal": "0" * 64}
    line = json.dumps({**young, "sealed_at": "2027-01-01T00:00:00Z"}) + "\n"
    both, alone = kept.with_name("both.jsonl"), kept.with_name("young.jsonl")
    both.write_text(kept.read_text() + line)
    alone.write_text(line)
    code, printed = said(story().rows, "--kept", both)
    assert (code, "kept lines that are younger than the bundle: 1." in printed) == (0, True), printed
    code, printed = said(story().rows, "--kept", alone)
    assert (code, "all 1 kept lines are younger than the bundle" in printed) == (1, True), printed
    for file in (both, alone):
        code, printed = said(story().rows, "--kept", file, made_at="2027-01-01T00:00:00Z")
        assert (code, "ends with seal 18, before seal 900" in printed) == (1, True)


def test_kept_heads_are_compared_with_the_versions_that_they_name(said: Checked, kept: Path) -> None:
    head, *others = bundles.kept_heads(story().rows)
    name, version = f"{head['org_id']}/{head['user_id']}", head["version"]
    file = kept.with_name("heads.jsonl")

    def compared(line: Row, **fields: object) -> tuple[int, str]:
        file.write_text("".join(json.dumps(each) + "\n" for each in (*others, line)) + kept.read_text())
        return said(story().rows, "--kept", file, **fields)

    code, printed = compared(head)
    assert (code, ", 3 kept heads, " in printed) == (0, True), printed
    code, printed = compared({**head, "hash": "0" * 64})
    assert (code, f"kept line 3: {name}, version {version} should have the hash '000" in printed) == (1, True), printed
    later = {**head, "version": version + 1}
    code, printed = compared(later)
    assert (code, f"the bundle ends with version {version}, before version {version + 1}" in printed) == (1, True)
    code, printed = compared({**head, "user_id": "zoe"})
    assert (code, "zoe" in printed, "the bundle ends with version 0" in printed) == (1, True, True), printed
    until = story().rows["seals"][-1]["sealed_at"] + MINUTE
    for line, fields in (({**later, "taken_at": "2026-05-01T00:00:00Z"}, {}), (later, {"until": until})):
        code, printed = compared(line, **fields)
        assert (code, "kept heads of versions that the bundle does not contain: 1." in printed) == (0, True), printed


def test_a_kept_file_with_heads_alone_must_have_one_that_can_be_compared(said: Checked, kept: Path) -> None:
    heads = bundles.kept_heads(story().rows)
    file = kept.with_name("heads-alone.jsonl")
    file.write_text(json.dumps(heads[0]))
    assert said(story().rows, "--kept", file)[0] == 0
    file.write_text(json.dumps({**heads[0], "version": 99, "taken_at": "2026-05-01T00:00:00Z"}))
    code, printed = said(story().rows, "--kept", file)
    assert (code, "nothing was compared with it" in printed) == (1, True)


def test_a_kept_file_without_lines_is_a_finding(said: Checked, kept: Path) -> None:
    empty = kept.with_name("empty.jsonl")
    empty.write_text("")
    code, printed = said(story().rows, "--kept", empty)
    assert (code, "empty.jsonl: nothing was compared with it" in printed) == (1, True)


def test_a_kept_line_of_another_trail_is_a_finding_whenever_the_bundle_was_made(said: Checked, kept: Path) -> None:
    """A bundle of a wholly forged trail, which claims to be older than what was kept of the true one."""
    forged = Story()
    forged.rows["trails"][0]["trail_id"] = "99999999-0c55-4f6e-8f21-1f9a3f6f7d02"
    forged.run({ANN: []}, joins=[ANN])
    for made_at in ("2000-01-01T00:00:00Z", "2030-01-01T00:00:00Z"):
        code, printed = said(forged.rows, "--kept", kept, answers=forged.answers, made_at=made_at)
        assert (code, printed.count("and the bundle of another")) == (1, 18), printed


# ------------------------------------------------------------------------------------------ what is tampered with


SIGNATURES_ALONE = {"a_signature_taken_away", "the_last_seal_deleted"}
OF_ROWS = sorted(name for name, each in TAMPERINGS.items() if each.of_rows and not each.rehashed)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampering_is_found_and_its_place_is_named(checked: Checked, tmp_path: Path, kept: Path, name: str) -> None:
    """What was kept excuses no other bundle around the rows."""
    file = TAMPERINGS[name].write(tmp_path / "bundle.zip")
    code, printed = checked(file)
    assert code == 1
    assert TAMPERINGS[name].found(printed), printed
    assert "Proven: " not in printed
    assert name in OF_ROWS or checked(file, "--kept", kept)[0] == 1


@pytest.mark.parametrize("name", [name for name in OF_ROWS if name not in SIGNATURES_ALONE])
def test_a_tampering_with_every_hash_computed_anew_is_found_by_what_was_kept(
    checked: Checked, tmp_path: Path, kept: Path, public_key: Path, name: str
) -> None:
    file = TAMPERINGS[name].write(tmp_path / "bundle.zip", forge=True)
    code, printed = checked(file, "--kept", kept)
    assert code == 1
    assert re.search(r"seal \d+ should be '|^run \d+: has no seal", printed, re.MULTILINE), printed
    assert checked(file, "--public-key", public_key)[0] == 1


# ------------------------------------------------------------------------------------------ what it says, and why

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
STATEMENTS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.partition("| the checker prints |")[2].split("\n\n")[0].splitlines()[2:]
]


def test_the_page_has_every_statement_that_the_checker_prints_once() -> None:
    assert sorted(statement.strip("`") for statement, *_ in STATEMENTS) == sorted(
        text.replace("`", "'") for text in check.SAID.values()
    )


@pytest.mark.parametrize(("statement", "proof", "found"), STATEMENTS, ids=[row[0][:40] for row in STATEMENTS])
def test_what_is_called_proven_cannot_be_tampered_with(statement: str, proof: str, found: str) -> None:
    """Each tampering that the page names is one that is found above."""
    names = re.findall(r"`(\w+)`", found)
    assert bool(names) == statement.startswith(("`Proven: ", "`Compared: {")), (
        "what is no proof is called something else"
    )
    assert TAMPERINGS.keys() >= set(names)
