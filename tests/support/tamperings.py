"""What somebody could do to a bundle or to a database, each under its name, with the finding that must come of it: one
table for every test that needs one, and for docs/audit.md, which names them."""

from __future__ import annotations

import copy
import datetime as dt
import functools
import hashlib
import io
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from etl.audit import check
from etl.domain import chain
from etl.domain.model import Flow, Target
from etl.schema import metadata
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


def altered(place: str, do: Tamper, *, rehash: bool = False) -> Tampering:
    """What must be found, a pattern, when rows are altered and no hash is computed anew."""
    return Tampering(lambda draft: do(draft.rows), place, whole, rehash, True)


def forged(sentence: str, do: Tamper) -> Tampering:
    """What must be found, a text, when every hash is computed anew and the trail cannot have been so."""
    return altered(re.escape(sentence), do, rehash=True)


def redrafted(place: str, do: Redraft, draft: Callable[[], Draft] = whole) -> Tampering:
    """What must be found when the bundle around the rows is another one; nothing that was kept denies that."""
    return Tampering(do, place, draft, False, False)


class Which:
    """The rows of a file that fit, once there are any, and what can be done to them."""

    def __init__(self, name: str, target: Target | None = None, *, nth: int = 0, **values: Any) -> None:
        self.name, self.target, self.nth, self.values = name, target, nth, values

    def of(self, rows: Rows) -> list[Row]:
        listed = [row for row in rows[self.name] if self.target is None or bundles.target_of(row) == self.target]
        return [row for row in listed if all(row[column] == value for column, value in self.values.items())]

    def first(self, rows: Rows) -> Row:
        """The first of them, or the ``nth``."""
        return self.of(rows)[self.nth]

    def put(self, **values: object) -> Tamper:
        """Set columns of the first one; a function is given what was there."""

        def do(rows: Rows) -> None:
            row = self.first(rows)
            row |= {column: value(row[column]) if callable(value) else value for column, value in values.items()}

        return do

    def copy(self, place: int | None = None, **values: object) -> Tamper:
        """Add a copy of the first one, with other values."""

        def do(rows: Rows) -> None:
            listed = rows[self.name]
            listed.insert(len(listed) if place is None else place, {**self.first(rows), **values})

        return do

    def drop(self, rows: Rows) -> None:
        """Delete all of them."""
        gone = list(map(id, self.of(rows)))
        rows[self.name] = [row for row in rows[self.name] if id(row) not in gone]

    def exchange(self, column: str, other: int) -> Tamper:
        """The first one and another one exchange their values of a column."""

        def do(rows: Rows) -> None:
            one, two = self.first(rows), self.of(rows)[other]
            one[column], two[column] = two[column], one[column]

        return do

    def exchange_places(self, rows: Rows) -> None:
        """The first one and the last one exchange their places, and keep all that they say but their numbers."""
        listed, mine = rows[self.name], self.of(rows)
        one, last = (listed.index(row) for row in (mine[0], mine[-1]))
        listed[one], listed[last] = listed[last], listed[one]
        for number, row in enumerate(listed, 1):
            row |= {"id": number} if "id" in row else {}


def run(number: int) -> Which:
    return Which("runs", id=number)


def all_of(*steps: Tamper) -> Tamper:
    return lambda rows: [step(rows) for step in steps]


def plus(more: Any) -> Callable[[Any], Any]:
    return lambda before: before + more


def user(user_id: str) -> Callable[[Row], Row]:
    return lambda scope: {**scope, "user_id": user_id}


# ------------------------------------------------------------------------------- rows, with the hashes as they were


def all_failures_deleted(rows: Rows) -> None:
    rows["issues"] = []
    for row in rows["runs"]:
        if row["status"] in ("failed", "partial"):
            row |= {"status": "succeeded", "unchanged": row["unchanged"] + row["failed"] + row["held"] + row["stale"]}
            row |= {"failed": 0, "held": 0, "stale": 0}


def insert_version(target: Target, number: int) -> Tamper:
    def do(rows: Rows) -> None:
        before, story = Which("change_sets", target).of(rows), Story()
        story.rows, story.now = rows, run(number).first(rows)["started_at"] + MINUTE / 10
        seen = story.targets.setdefault(target, bundles.Seen())
        if before:
            seen.version, seen.hash = before[-1]["version"], before[-1]["hash"]
            seen.spans = Which("spans", target).of(rows)
        story._observe(number, target, [Flow("7", "x", "D", True)], None)

    return do


def stretched(rows: Rows) -> None:
    """Into a run that failed."""
    span, failed = Which("spans", CAT).first(rows), run(14).first(rows)
    span |= {"last_at": failed["finished_at"], "last_asked_at": failed["started_at"], "observations": 2}
    span["longest_gap_seconds"] = (span["last_at"] - span["first_at"]) // SECOND


def shortened(rows: Rows) -> None:
    span = Which("spans", ANN, version=4).first(rows)
    span |= dict.fromkeys(("last_at", "last_asked_at"), span["first_at"])
    span |= {"observations": 1, "longest_gap_seconds": 0}


def dropped(names: str, target: Target, **values: Any) -> Tamper:
    return all_of(*(Which(name, target, **values).drop for name in names.split()))


SECOND, DAY = dt.timedelta(seconds=1), dt.timedelta(days=1)
EVE = Target("o9", "eve")
BEN_3, BEN_6 = Which("change_sets", BEN, version=3), Which("issues", BEN, run_id=6)
HELD, APPROVED = Which("holds", BEN, kind="held"), Which("holds", BEN, kind="approved")
TEN = Which("changes", ANN, version=2, flow_id="10")
SPAN_4 = Which("spans", ANN, version=4)
ALTERED: dict[str, tuple[str, Tamper]] = {
    "all_failures_deleted_and_runs_called_succeeded": (
        r"o1/ann, after .* 1 runs that have neither an observation nor an issue", all_failures_deleted,
    ),
    "runs_of_two_versions_exchanged": (
        r"o1/ann, version 2: change_set\.observed_at is .*, not in the time of run 7",
        Which("change_sets", ANN, nth=1).exchange("run_id", 2),
    ),
    "an_open_span_stretched_back_by_two_months": (
        r"o1/ann, version 4: observation\.observations from .* should be 3, .* but is 90",
        SPAN_4.put(observations=90, longest_gap_seconds=40),
    ),
    "a_span_stretched_into_a_run_that_failed": (
        r"o2/cat, version 1: observation\.observations from .* should be 1, .* but is 2", stretched,
    ),
    "a_span_stretched_by_two_months": (
        r"o2/cat, version 1: observation\.observations from .* should be 1",
        Which("spans", CAT).put(
            last_at=plus(60 * DAY), last_asked_at=plus(60 * DAY), observations=2, longest_gap_seconds=5_184_000
        ),
    ),
    "an_observation_at_a_time_of_no_run": (
        r"o1/ann, version 4: observation\.last_at is .*, when no sealed run observed it",
        SPAN_4.put(last_at=plus(dt.timedelta(hours=1)), longest_gap_seconds=4000),
    ),
    "a_version_inserted_in_a_run_that_is_sealed": (
        r"o2/cat, version 2: .*run 14 \(seal 14\)|run 14 .*change_sets_digest|o2/cat, .*observation",
        insert_version(CAT, 14),
    ),
    "a_user_inserted_into_a_run_that_is_sealed": (
        r"run 2 \(seal 2\): change_sets_digest|o9/eve.*run 2 \(seal 2\) was not to ask", insert_version(EVE, 2),
    ),
    "a_user_inserted_with_a_membership": (
        r"run 2 \(seal 2\): events_digest", Which("memberships").copy(**EVE._asdict(), id=99, run_id=2),
    ),
    "a_name_altered_in_a_change": (r"o1/ann, version 2: change_set\.state_digest", TEN.put(new_name="other")),
    "a_change_deleted": (r"o1/ann, version 2: change_set\.added should be 0, but is 1", TEN.drop),
    "the_last_version_deleted": (
        r"o1/ben \[电\], version 5: observation: rows of a version that is not there",
        dropped("change_sets changes", BEN, version=5),
    ),
    "a_version_deleted_in_the_middle": (
        r"o1/ann, version 2: change_set\.version should be 2, but is 3",
        dropped("change_sets changes spans", ANN, version=2),
    ),
    "a_user_deleted": (
        r"run 11 \(seal 11\): change_sets_digest|o2/cat, to the end|o2/cat, and before",
        dropped("change_sets changes spans", CAT),
    ),
    "a_user_deleted_with_every_trace": (
        r"run 14 \(seal 14\): targets_digest", dropped("change_sets changes spans issues memberships holds", CAT),
    ),
    "an_approver_renamed": (r"o1/ben \[电\], version 3: change_set\.hash", BEN_3.put(approved_by="Yannick")),
    "an_approval_taken_away": (
        r"o1/ben \[电\], version 3: change_set\.hash",
        all_of(BEN_3.put(approved_by=None, approved_scope=None), Which("holds", kind="approved").drop),
    ),
    "more_approved_than_was_held": (
        r"o1/ben \[电\], version 3: change_set\.approved_scope", APPROVED.put(flow_ids=plus(["流"])),
    ),
    "a_hold_made_smaller": (
        r"run 6 \(seal 6\): events_digest|o1/ben \[电\], run 6: missing", HELD.put(flow_ids=lambda ids: ids[:-1]),
    ),
    "a_held_change_that_no_answer_shows": (
        r"run 6 \(seal 6\): events_digest|o1/ben \[电\], hold in run 6: its answer does not show held",
        HELD.put(doubted=plus([["10", "renamed", "another name"]])),
    ),
    "another_verdict": (r"run 8 \(seal 8\): issues_digest", Which("issues", BEN, run_id=8).put(verdict="stale")),
    "a_failure_invented": (
        r"o1/ann, run 2|o1/ann, version 1: observation\.observations from",
        Which("issues", BEN, run_id=3).copy(**ANN._asdict(), run_id=2),
    ),
    "a_span_of_the_present_version_shortened": (
        r"o1/ann, after .* neither an observation nor an issue|o1/ann, version 4: observation\.first_at", shortened,
    ),
    "a_run_deleted_with_its_seal": (
        r"seal 9: id should be 9, but is 10", all_of(run(9).drop, Which("seals", id=9).drop),
    ),
    "the_last_seal_deleted": (r"run 18: has no seal|manifest\.json: last_seal|seal 18", Which("seals", id=18).drop),
    "a_run_deleted": (r"seal 8: its run 8 is missing", run(8).drop),
    "two_seals_exchanged": (r"run 3 \(seal 2\): seal", Which("seals", nth=1).exchange("run_id", 2)),
    "an_aborted_run_called_succeeded": (r"run 9 \(seal 9\): seal", run(9).put(status="succeeded")),
    "missed_slots_forgotten": (r"run 4 \(seal 4\): seal", run(4).put(missed_slots=plus(3))),
    "a_user_left_out_of_what_was_to_be_asked": (
        r"run 11 \(seal 11\): targets_digest|o2/cat, .*was not asked|o2/cat, version 1: run 11",
        run(11).put(scope=user("nobody")),
    ),
    "a_pruning_invented": (
        r"run 3 \(seal 3\): its issues, which were pruned", Which("pruned_issues").copy(pruned_run_id=3),
    ),
    "a_signature_taken_away": (
        r"seal 5: is not signed, though a seal before it was", Which("seals", id=5).put(signature=None, key_id=None),
    ),
    "an_acknowledgement_under_another_ticket": (
        r"run 4 \(seal 4\): acknowledgements_digest", Which("acknowledgements").put(ticket="4712"),
    ),
    "an_acknowledgement_with_a_wider_scope": (
        r"run 4 \(seal 4\): acknowledgements_digest", Which("acknowledgements").put(until=None),
    ),
    "an_acknowledgement_inserted": (
        r"run 11 \(seal 11\): acknowledgements_digest", Which("acknowledgements", nth=3).copy(id=5, revokes=1),
    ),
    "an_acknowledgement_back_dated": (
        r"run 3 \(seal 3\): acknowledgements_digest", Which("acknowledgements").put(made_at=plus(-3 * MINUTE)),
    ),
    "an_acknowledgement_removed": (
        r"run 11 \(seal 11\): acknowledgements_digest", Which("acknowledgements", id=3).drop,
    ),
    "a_revocation_removed": (r"run 11 \(seal 11\): acknowledgements_digest", Which("acknowledgements", id=4).drop),
    "a_trail_that_began_earlier": (r"seal 1: parent", Which("trails").put(created_at=plus(-365 * DAY))),
}  # fmt: skip
TAMPERINGS |= {name: altered(place, do) for name, (place, do) in ALTERED.items()}


# ------------------------------------------------------- a trail that cannot have been so, although every hash is right


def changes_nothing(rows: Rows) -> None:
    three, four = (Which("change_sets", ANN, version=version).first(rows) for version in (3, 4))
    four.update(dict.fromkeys(check.KINDS, 0), data_hash="0" * 64)
    four.update({name: three[name] for name in ("flow_count", "state_digest")})
    Which("changes", ANN, version=4).drop(rows)


def called_held(rows: Rows) -> None:
    Which("holds", ANN, kind="held").copy(0, run_id=3, flow_ids=["10"])(rows)
    TEN.put(new_name="other")(rows)
    flows = bundles.state_at(rows, ANN, 2).values()
    Which("change_sets", ANN, version=2).put(state_digest=chain.state_digest(flows))(rows)


FORGED: dict[str, tuple[str, Tamper]] = {
    "an_acknowledgement_left_out": (
        "acknowledgement 2: should have the id 1", Which("acknowledgements", id=1).drop,
    ),
    "a_member_who_came_back_before_he_left": (
        "o1/ben [电], run 13 (seal 13), memberships.jsonl: at is 2026-03-01 03:29:12+00:00, before 2026-03-01 04:17:24",
        Which("memberships", BEN).exchange_places,
    ),
    "a_hold_that_ended_before_it_began": (
        "o1/ben [电], run 7 (seal 7), holds.jsonl: at is 2026-03-01 01:52:24+00:00, before 2026-03-01 02:40:54",
        Which("holds", BEN).exchange_places,
    ),
    "a_membership_twice_under_its_number": (
        "memberships.jsonl: id 1 does not rise", Which("memberships", nth=1).put(id=1),
    ),
    "fewer_observations_than_runs": (
        "o1/ann, version 4: observation.observations from 2026-03-01 04:17:30+00:00 to 2026-03-01 04:49:54+00:00",
        SPAN_4.put(observations=2, longest_gap_seconds=1944),
    ),
    "a_version_of_a_run_that_was_not_to_ask": (
        "o1/ben [电], version 5: run 16 (seal 16) was not to ask this target", run(16).put(scope=user("ann")),
    ),
    "an_approval_outside_an_approval": (
        "o1/ben [电], version 3: the origin of its run should be 'approval', but is 'command'",
        run(10).put(origin="command"),
    ),
    "an_approval_of_nobody": (
        "o1/ben [电], version 3: change_set.approved_by and approved_scope should both be there, or neither",
        BEN_3.put(approved_by=None),
    ),
    "a_workflow_held_twice": (
        "o1/ben [电], hold: held of '101' in run 8 cannot be", Which("holds", BEN, run_id=6).copy(2, run_id=8),
    ),
    "a_hold_that_ends_before_it_began": (
        "o1/ann, hold: back of '1' in run 4 cannot be",
        Which("holds", ANN, kind="held").copy(0, kind="back", run_id=4),
    ),
    "two_verdicts_of_a_target": (
        "o1/ben [电], run 3 (seal 3): sync_issue: it was not asked, or has two verdicts",
        Which("issues", BEN, run_id=3).copy(),
    ),
    "a_failure_of_a_target_that_was_not_asked": (
        "o2/cat, run 3 (seal 3): sync_issue: it was not asked, or has two verdicts",
        Which("issues", BEN, run_id=3).copy(**CAT._asdict()),
    ),
    "a_seal_before_the_one_before": (
        "run 4 (seal 4): the times of the run and of the seal go back",
        all_of(Which("seals", id=4).put(sealed_at=START + DAY / 96), run(4).put(started_at=START, finished_at=START)),
    ),
    "a_run_that_ends_before_it_begins": (
        "run 4 (seal 4): the times of the run and of the seal go back", run(4).put(finished_at=START),
    ),
    "a_span_before_its_version": (
        "o2/cat, version 1: observation.first_at is 2026-03-01 02:56:54+00:00, before the version was observed",
        Which("spans", CAT).put(**dict.fromkeys(("first_at", "last_asked_at", "last_at"), plus(-6 * SECOND))),
    ),
    "a_span_that_was_asked_for_before_the_end_of_the_one_before": (
        "o1/ann, version 2: observation: first_at and last_asked_at should be after 2026-03-01 01:03:42+00:00",
        Which("spans", ANN, version=2, nth=1).put(last_asked_at=START + 3822 * SECOND),
    ),
    "a_first_span_that_was_interrupted": (
        "o2/cat, version 1: observation: the baseline should open a span that is not interrupted",
        Which("spans", CAT).put(interrupted=True),
    ),
    "a_version_before_the_end_of_the_one_before": (
        "o1/ann, version 2: change_set.observed_at should be after 2026-03-01 00:31:18+00:00, the time recorded before",
        Which("change_sets", ANN, version=2).put(observed_at=START + 1878 * SECOND),
    ),
    "more_unchanged_than_targets": ("run 2 (seal 2): unchanged should be 2, but is 3", run(2).put(unchanged=3)),
    "an_aborted_run_that_says_what_was_unchanged": (
        "run 9 (seal 9): unchanged should be 0, but is 1", run(9).put(unchanged=1),
    ),
    "a_status_that_the_sums_deny": (
        "run 3 (seal 3): status should be 'partial', but is 'succeeded'", run(3).put(status="succeeded"),
    ),
    "more_targets_than_members": ("run 2 (seal 2): targets should be 2, but is 3", run(2).put(targets=3, unchanged=3)),
    "a_failure_that_is_not_counted": (
        "run 3 (seal 3): failed should be 1, but is 0", run(3).put(failed=0, unchanged=1, status="succeeded"),
    ),
    "a_version_that_changes_nothing": ("o1/ann, version 4: changes nothing", changes_nothing),
    "a_kind_of_change_left_out": (
        "o1/ann, version 2, workflow '1': change should be ['1', 'renamed', 'one', 'one!', ",
        all_of(
            Which("change_sets", ANN, version=2).put(renamed=0), run(3).put(renamed=0),
            Which("changes", ANN, version=2, kind="renamed").drop,
        ),
    ),
    "a_list_that_the_answer_does_not_have_and_nothing_is_held": (
        "o1/ben [电], version 2, workflow '101': in its answer should be", Which("holds", BEN).drop,
    ),
    "a_workflow_that_the_answer_has_otherwise_and_that_is_called_held": (
        "o1/ann, version 2, workflow '10': in its answer should be", called_held,
    ),
    "more_missing_than_is_held": ("o1/ben [电], run 6: missing should be 7, but is 8", BEN_6.put(missing=8)),
    "a_held_set_out_of_order": (
        "o1/ben [电], hold: flow_ids should be", Which("holds", BEN, run_id=6).put(flow_ids=lambda ids: ids[::-1]),
    ),
    "a_seal_of_a_format_that_nobody_knows": (
        "seal 7: format should be 1, but is 2", Which("seals", id=7).put(format=2),
    ),
    "a_version_of_a_format_that_nobody_knows": (
        "o1/ann, version 2: change_set.format should be 1, but is 2",
        Which("change_sets", ANN, version=2).put(format=2),
    ),
    "a_span_of_a_version_that_is_not_there": (
        "o2/cat, version 2: observation: rows of a version that is not there", Which("spans", CAT).copy(version=2),
    ),
    "a_gap_in_one_observation": (
        "o2/cat, version 1: observation.longest_gap_seconds cannot be 5",
        Which("spans", CAT).put(longest_gap_seconds=5),
    ),
    "one_observation_with_a_length": (
        "o2/cat, version 1: observation: 1 observations from", Which("spans", CAT).put(last_at=plus(SECOND)),
    ),
}  # fmt: skip
TAMPERINGS |= {name: forged(sentence, do) for name, (sentence, do) in FORGED.items()}


# --------------------------------------------------------------------------------------------- what is around the rows


def fields(**values: object) -> Redraft:
    return lambda draft: draft.fields.update(values)


def put_in(name: str, old: bytes, new: bytes) -> Redraft:
    """Another text in a file, which the manifest names as it is then."""

    def refile(files: dict[str, bytes]) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new, 1)

    return lambda draft: setattr(draft, "refile", refile)


def filed(files: dict[str, bytes]) -> Redraft:
    """Other or more files, which the manifest names."""
    return lambda draft: setattr(draft, "refile", lambda mine: mine.update(files))


def remade(do: Callable[[Row], object]) -> Redraft:
    """Another list of files in the manifest."""
    return lambda draft: setattr(draft, "remake", lambda manifest: do(manifest["files"]))


def repack(do: Callable[[bytes], bytes]) -> Redraft:
    """What is done to the archive when it is written."""
    return lambda draft: setattr(draft, "repack", do)


def stamped(draft: Draft) -> None:
    draft.rows["timestamps"] = [{"seal_id": 5, "token": "AAAA"}]


def another_answer(draft: Draft) -> None:
    one, other = list(draft.answers)[:2]
    draft.answers[one] = draft.answers[other]


def out_of_order(draft: Draft) -> None:
    def refile(files: dict[str, bytes]) -> None:
        first, second, *rest = files["changes.jsonl"].splitlines(keepends=True)
        files["changes.jsonl"] = b"".join([second, first, *rest])

    draft.refile = refile


def created(time: str) -> Redraft:
    return lambda draft: draft.rows["trails"][0].update(created_at=time)


def both(*steps: Redraft) -> Redraft:
    return lambda draft: [step(draft) for step in steps]


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


def appended(name: str, how: int = zipfile.ZIP_DEFLATED) -> Redraft:
    """One file more in the archive, of which the manifest says nothing."""

    def do(archive: bytes) -> bytes:
        file = io.BytesIO(archive)
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "a") as more:
            more.writestr(name, b"x", how)
        return file.getvalue()

    return repack(do)


def moved(archive: bytes) -> bytes:
    """All but the first file by eight bytes, as if they had been there when the archive was written."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
            new.start_dir += 8 if info.filename == "manifest.json" else 0
    return file.getvalue()


def hidden(archive: bytes) -> bytes:
    """Bytes behind what is compressed."""
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


def escaped(text: bytes) -> bytes:
    return text.replace(b"made_at", rb"\u006dade_at")


NAMELESS = hashlib.sha256(b"[ ]").hexdigest()
SEALED = [None, *(row["sealed_at"] for row in story().rows["seals"])]
SHUT = "lies in the time of the bundle, and is not opened"
OPENED = "is opened, and does not lie in the time"
KEYS = r"manifest\.json: cannot be read: should have bundle, made_at, since, until, org_id, last_seal, files"
OF_A_PART: dict[str, tuple[str, Redraft]] = {
    "a_period_that_begins_later": (rf"run 6 \(seal 6\): {OPENED}", fields(since=SEALED[7])),
    "a_period_that_begins_earlier": (rf"run 5 \(seal 5\): {SHUT}", fields(since=SEALED[5])),
    "a_period_called_all_the_time": (rf"run 1 \(seal 1\): {SHUT}", fields(since=None, until=None)),
    "a_period_that_ends_later": (rf"run 13 \(seal 13\): {SHUT}", fields(until=SEALED[15])),
    "a_period_that_ends_earlier": (rf"run 11 \(seal 11\): {OPENED}", fields(until=SEALED[11])),
    "an_event_in_a_run_that_is_not_opened": (
        r"run 3 \(seal 3\): is not opened, and has rows in org_events\.jsonl",
        lambda draft: draft.rows["org_events"].insert(0, {**bundles.EVENT, "run_id": 3}),
    ),
    "a_failure_in_a_run_that_is_not_opened": (
        r"o1/ben \[电\], run 3 \(seal 3\): sync_issue: it was not asked, or has two verdicts",
        lambda draft: draft.rows["issues"].append(Which("issues", BEN, run_id=3).first(story().rows)),
    ),
}
OF_ONE_ORGANISATION: dict[str, tuple[str, Redraft]] = {
    "another_organisation": (
        r"acknowledgements\.jsonl, line 1: is of the organisation 'o1', and the bundle of 'o9'", fields(org_id="o9"),
    ),
    "one_organisation_called_all": (rf"run 11 \(seal 11\): {SHUT}", fields(org_id=None)),
    "an_organisation_with_a_shorter_period": (rf"run 1 \(seal 1\): {OPENED}", fields(since=SEALED[7])),
}  # fmt: skip
OF_ALL: dict[str, tuple[str, Redraft]] = {
    "all_organisations_called_one": (
        r"acknowledgements\.jsonl, line 3: is of the organisation 'o2', and the bundle of 'o1'", fields(org_id="o1"),
    ),
    "a_bundle_made_before_its_last_seal": (
        r"manifest\.json: made_at is 2026-01-01 00:00:00\+00:00, before the last seal was made",
        fields(made_at="2026-01-01T00:00:00Z"),
    ),
    "another_last_seal": (
        r"manifest\.json: last_seal should be",
        fields(last_seal={"id": 17, "seal": story().rows["seals"][16]["seal"]}),
    ),
    "a_certificate_in_the_manifest": (KEYS, fields(certified="ALL TIME, COMPLETE")),
    "a_run_that_is_said_to_be_under_way": (KEYS, fields(unsealed=["2026-03-01T00:00:00Z"])),
    "a_word_about_a_file_in_the_manifest": (
        rf"{KEYS}, and of each file its bytes and sha256",
        remade(lambda files: files["runs.jsonl"].update(note="complete")),
    ),
    "a_manifest_in_escapes": (
        r"manifest\.json: cannot be read: is not written as bundles are",
        repack(lambda archive: repacked(archive, "manifest.json", escaped)),
    ),
    "another_answer_under_the_hash_of_one": (
        r"answers/[0-9a-f]{64}: should be bytes with this hash", another_answer,
    ),
    "an_answer_that_nothing_names": (
        rf"answers/{NAMELESS}: no version and no hold of the bundle names it", filed({f"answers/{NAMELESS}": b"[ ]"}),
    ),
    "a_file_that_the_archive_lacks": (
        r"more: is not both in the manifest and in the archive",
        remade(lambda files: files.update(more=files["runs.jsonl"])),
    ),
    "a_file_that_the_manifest_lacks": (
        r"holds\.jsonl: is not both in the manifest and in the archive", remade(lambda files: files.pop("holds.jsonl")),
    ),
    "a_file_that_the_manifest_describes_otherwise": (
        r"holds\.jsonl: is another file than the manifest says",
        remade(lambda files: files["holds.jsonl"].update(bytes=1)),
    ),
    "a_file_that_is_there_twice": (r"holds\.jsonl: is in the archive twice", appended("holds.jsonl")),
    "a_file_in_bzip2": (
        r"more: is compressed in a way that bundles do not use", appended("more", zipfile.ZIP_BZIP2),
    ),
    "rows_out_of_order": (r"changes\.jsonl, line 2: is not in the order of the targets", out_of_order),
    "a_time_stamp_of_something_else": (r"time stamp of seal 5: is not one of this seal", stamped),
    "a_text_in_escapes": (
        r"changes\.jsonl, line \d+: is not written as bundles are",
        put_in("changes.jsonl", "三".encode(), rb"\u4e09"),
    ),
    "lines_that_end_as_on_windows": (
        r"runs\.jsonl, line 1: is not written as bundles are", put_in("runs.jsonl", b"\n", b"\r\n"),
    ),
    "spaces_in_a_line": (
        r"seals\.jsonl, line 1: is not written as bundles are", put_in("seals.jsonl", b":", b": "),
    ),
    "a_last_line_without_an_end": (
        r"timestamps\.jsonl, line 1: is not written as bundles are",
        both(stamped, put_in("timestamps.jsonl", b"\n", b"")),
    ),
    "a_fraction_that_says_nothing": (
        r"trails\.jsonl, line 1: is no time", put_in("trails.jsonl", b"00Z", b"00.000000Z"),
    ),
    "a_reason_for_the_trail": (
        r"trails\.jsonl, line 1: should have the keys trail_id, created_at, first_seal",
        put_in("trails.jsonl", b"}", b',"reason":"copied"}'),
    ),
    "bytes_before_the_archive": (
        r"manifest\.json: does not follow the file before it: something else is in the archive, too",
        repack(lambda archive: b"#!/bin/sh\n" + archive),
    ),
    "another_archive_before_it": (
        r"manifest\.json: does not follow the file before it", repack(lambda archive: archive + archive),
    ),
    "bytes_between_two_files": (r"check\.py: does not follow the file before it", repack(moved)),
    "bytes_behind_the_archive": (
        r"the archive: has something behind its files, or a comment", repack(lambda archive: archive + b"ALL TIME"),
    ),
    "a_comment_on_the_archive": (
        r"the archive: has something behind its files, or a comment",
        repack(lambda archive: archive[:-2] + b"\x08\x00COMPLETE"),
    ),
    "a_comment_on_a_file": (
        r"check\.py: does not follow the file before it",
        repack(lambda archive: repacked(archive, "check.py", comment=b"certified")),
    ),
    "an_additional_field_of_a_file": (
        r"check\.py: does not follow the file before it",
        repack(lambda archive: repacked(archive, "check.py", extra=b"\xfe\xca\x04\x00true")),
    ),
    "bytes_behind_what_is_compressed": (r"check\.py: is not all that is in its place in the archive", repack(hidden)),
}  # fmt: skip
FOREIGN = ("zipfile.py", "notes.txt", "seals.jsonl.bak", "folder/check.py", "answers")
"""Python would import such a `zipfile.py` where the archive was unpacked."""
OF_ALL |= {f"a_file_called_{name}": (f"{re.escape(name)}: is no file", filed({name: b"x"})) for name in FOREIGN}
LINES = {
    b"hello\n": "line 1: Expecting value",
    b"5\n": "line 1: should have the keys",
    b"\xff\n": "line 1: 'utf-8'",
    b'{"run_id": 1, "hashes": ["x"], "more": 1}\n': "line 1: should have the keys",
    b'{"hashes": [], "run_id": 1}\n': "line 1: should have the keys run_id, hashes, in this order",
    b'{"run_id": true, "hashes": []}\n': "line 1: run_id is no int: True",
    b'{"run_id": 1.0, "hashes": []}\n': "line 1: holds the number 1.0",
    b'{"run_id": 1, "hashes": NaN}\n': "line 1: holds the number NaN",
    b'{"run_id": 1, "run_id": 1}\n': "line 1: holds a key twice",
    b'{"run_id": 1, "hashes": ["\\ud800"]}\n': "line 1: hashes is no texts",
    b'{"run_id": null, "hashes": []}\n': "line 1: run_id is no int: null",
    b"[" * 100_000 + b"\n": "line 1: ",
}
OF_ALL |= {
    f"a_line_that_is_{line[:24]!r}": (re.escape(f"hashes.jsonl, {said}"), filed({"hashes.jsonl": line}))
    for line, said in LINES.items()
}
TIMES = ("2026-02-30T00:00:00Z", "2026-03-01 00:00:00Z", "2026-03-01T00:00:00", "2026-03-01T24:00:00Z", "now", "٢")
OF_ALL |= {f"a_time_that_is_{time}": (r"trails\.jsonl, line 1: ", created(time)) for time in TIMES}
for table, draft in ((OF_A_PART, part), (OF_ONE_ORGANISATION, one_organisation), (OF_ALL, whole)):
    TAMPERINGS |= {name: redrafted(place, do, draft) for name, (place, do) in table.items()}

# ------------------------------------------------------------------------------------------ rows of a database


class InDatabase(NamedTuple):
    """What somebody could do to the rows of the ``lived`` database, on SQLite."""

    statements: str
    """Separated by semicolons."""
    verify: str
    """What is in a finding of ``flowtrail verify``; empty where no row proves it."""
    checker: str = ""
    """What is in a finding about the bundle that is written then; empty where the bundle says what is true."""
    kept: str = ""
    """What heads that were kept find missing."""
    story: str = ""
    """What ``contradictions`` finds."""


def copied(table: str, where: str = "id = 1", **values: object) -> str:
    """Copies of rows, with other values, in SQL; a number of its own is given by the database."""
    columns = {column.name: column.name for column in metadata.tables[table].columns if column.name != "id"}
    columns |= {name: str(value) for name, value in values.items()}
    return f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM {table} WHERE {where}"


LOWEST, HIGHEST = -(2**63), 2**63 - 1
EARLY, LATE = "'2026-01-01 00:00:00.000000'", f"'{dt.datetime.now(dt.UTC) + dt.timedelta(90):%Y-%m-%d %H:%M:%S.%f}'"
INVENTED = "INSERT INTO sync_issue (run_id, target_id, verdict, message)"
OPEN_SPAN = "WHERE id = (SELECT observation_id FROM target WHERE user_id = 'u000')"
STRETCHED = f"UPDATE observation SET last_at = {LATE}, last_asked_at = {LATE}, observations = 9"
FLOW_3 = "WHERE target_id = 4 AND flow_id = '3'"
IN_DATABASE = {
    "all failures deleted, and runs called well": InDatabase(
        """DELETE FROM sync_issue;
        UPDATE sync_run SET status = 'succeeded', failed = 0, unchanged = unchanged + failed
        WHERE status <> 'aborted'""",
        "sync_run.status should be 'partial', but is 'succeeded'", "run 3 (seal 3): seal should be"),
    "runs of versions exchanged": InDatabase(
        "UPDATE change_set SET run_id = (SELECT max(run_id) FROM change_set) WHERE version = 1",
        "change_set.observed_at should be in the time of its run", "not in the time of run 13 (seal 13)"),
    "a run without its seal": InDatabase(
        "DELETE FROM run_seal WHERE id = 2",
        "run_seal.id should be 2, after the seal 1, but is 3", "seal 2: id should be 2, but is 3"),
    "the last run gone with its seal": InDatabase(
        """DELETE FROM sync_run WHERE id = (SELECT max(run_id) FROM run_seal);
        DELETE FROM run_seal WHERE id = (SELECT max(id) FROM run_seal)""",
        "trail.last_seal should be 15, but is 16", "kept line 16: the bundle ends with seal 15, before seal 16"),
    "a run that has ended, without a seal": InDatabase(
        copied("sync_run"), "run_seal should be a seal, since the run has ended", "run 17: has no seal"),
    "a scope with a fraction": InDatabase(
        "UPDATE sync_run SET scope = replace(scope, '}', '.0}') WHERE id = 2",
        "sync_run.scope should be an object", "runs.jsonl, line 2: holds the number 3.0"),
    "a run gone with its seal": InDatabase(
        "DELETE FROM sync_run WHERE id = 2; DELETE FROM run_seal WHERE id = 2",
        "run_seal.id should be 2, after the seal 1, but is 3", "seal 2: id should be 2, but is 3"),
    "an invented member": InDatabase(
        f"""INSERT INTO target (id, org_id, user_id) VALUES (99, 'o1', 'eve');
        {copied("target_membership", target_id=99)}""",
        "run 1 (seal 1): run_seal.events_digest", "run 1 (seal 1): events_digest"),
    "an acknowledgement under another ticket": InDatabase(
        "UPDATE acknowledgement SET ticket = 'CHG-2' WHERE ticket = 'CHG-1'",
        "run 4 (seal 4): run_seal.acknowledgements_digest", "run 4 (seal 4): acknowledgements_digest"),
    "an acknowledgement inserted": InDatabase(
        copied("acknowledgement", id=4),
        "run 4 (seal 4): run_seal.acknowledgements_digest", "run 4 (seal 4): acknowledgements_digest"),
    "an acknowledgement back-dated": InDatabase(
        f"UPDATE acknowledgement SET made_at = {EARLY} WHERE id = 1",
        "run 1 (seal 1): run_seal.acknowledgements_digest", "run 1 (seal 1): acknowledgements_digest"),
    "an acknowledgement removed": InDatabase(
        "DELETE FROM acknowledgement WHERE id = 1",
        "run 4 (seal 4): run_seal.acknowledgements_digest", "run 4 (seal 4): acknowledgements_digest"),
    "a revocation removed": InDatabase(
        "DELETE FROM acknowledgement WHERE revokes = 2",
        "run 5 (seal 5): run_seal.acknowledgements_digest", "run 5 (seal 5): acknowledgements_digest"),
    "an acknowledgement with the lowest number of all": InDatabase(
        copied("acknowledgement", "id = 1", id=LOWEST),
        f"acknowledgement.id should be numbered from 1, but is numbered from {LOWEST}",
        "run 4 (seal 4): acknowledgements_digest"),
    "an acknowledgement that the head does not know": InDatabase(
        copied("acknowledgement", id=4, made_at=LATE), "trail.acknowledged_at should be"),
    "pruned issues are not told": InDatabase(
        "DELETE FROM pruned_issues",
        "run 3 (seal 3): sync_run.failed should be 0, but is 1", "run 3 (seal 3): issues_digest"),
    "an issue invented": InDatabase(
        f"{INVENTED} SELECT run_id, target_id, 'failed', 'x' FROM change_set WHERE version = 1",
        "run 1 (seal 1): sync_run.changed should be 0, but is 3",
        "o1/u002, version 1: observation.observations from"),
    "a change deleted": InDatabase(
        "DELETE FROM workflow_change WHERE flow_id = '1' AND change_set_id = 1",
        "change_set.baseline should be 5, but is 6", "change_set.baseline should be 5, but is 6"),
    "a change added": InDatabase(
        "INSERT INTO workflow_change (change_set_id, flow_id, kind, new_name) VALUES (1, 'x', 'baseline', 'y')",
        "change_set.baseline should be 7, but is 6", "change_set.baseline should be 7, but is 6"),
    "a former cycle altered": InDatabase(
        "UPDATE workflow_change SET old_cycle = 'W' WHERE kind = 'removed'",
        "o1/u000, version 2: workflow_change should be", "o1/u000, version 2, workflow '6': change should be"),
    "a version deleted": InDatabase(
        "DELETE FROM change_set WHERE version = 2; DELETE FROM observation WHERE version = 2",
        "change_set.version should be 2, but is 3", "change_set.version should be 2, but is 3", "change_set"),
    "a first version deleted": InDatabase(
        "DELETE FROM change_set WHERE version = 1 AND target_id = 1",
        "o1/u000, version 1: change_set.version should be 1, but is 2",
        "o1/u000, version 1: change_set.version should be 1, but is 2"),
    "another hash": InDatabase(
        "UPDATE change_set SET hash = parent_hash WHERE version = 2",
        "o1/u001, version 2: change_set.hash", "o1/u001, version 2: change_set.hash", "change_set.hash"),
    "another digest of the list": InDatabase(
        "UPDATE change_set SET state_digest = hash WHERE version = 2 AND target_id = 2",
        "o1/u001, version 2: change_set.state_digest", "o1/u001, version 2: change_set.state_digest",
        "change_set.state_digest"),
    "a user renamed": InDatabase(
        "UPDATE target SET user_id = 'somebody' WHERE user_id = 'u002'",
        "o1/somebody, version 1: change_set.hash", "o1/somebody, version 1: change_set.hash",
        "change_set change_set.observed_at"),
    "the approval taken away": InDatabase(
        "UPDATE change_set SET approved_by = NULL, approved_scope = NULL",
        "o1/u001, version 2: change_set.hash", "o1/u001, version 2: change_set.hash"),
    "an approval of somebody else": InDatabase(
        "UPDATE change_set SET approved_by = 'eve' WHERE approved_by IS NOT NULL",
        "o1/u001, version 2: change_set.hash", "o1/u001, version 2: change_set.hash"),
    "an open span that is stretched by months": InDatabase(
        f"{STRETCHED}, longest_gap_seconds = 5000000 {OPEN_SPAN}",
        "observation.observations should be", "o1/u000, version 3: observation.observations from"),
    "a span that is stretched without a gap": InDatabase(
        f"{STRETCHED}, longest_gap_seconds = -1 {OPEN_SPAN}",
        "observation.observations should be", "observation.longest_gap_seconds cannot be -1", "observation"),
    "a span that is stretched without its outage": InDatabase(
        f"{STRETCHED}, longest_gap_seconds = 5000000, interrupted = 0 {OPEN_SPAN}",
        "observation.observations should be", "observation.interrupted should be True", "observation"),
    "an outage denied": InDatabase(
        "UPDATE observation SET interrupted = 0 WHERE interrupted = 1",
        "observation.interrupted should be true", "observation.interrupted should be True", "observation"),
    "a span deleted": InDatabase(
        "DELETE FROM observation WHERE version = 1",
        "observation should be the span that the baseline opened",
        "observation: the span that the baseline opened is missing", "observation"),
    "the open span deleted": InDatabase(
        f"DELETE FROM observation {OPEN_SPAN}; UPDATE target SET observation_id = 7 WHERE user_id = 'u000'",
        "observation.id should be numbered without a gap", "2 runs that have neither an observation nor an issue",
        "observation"),
    "a membership deleted": InDatabase(
        "DELETE FROM target_membership WHERE id = 2",
        "run 1 (seal 1): sync_run.targets_digest", "sync_issue: it was not asked"),
    "a seal of another run": InDatabase(
        "UPDATE run_seal SET run_id = 990 WHERE run_id = 2",
        "run_seal 2.run_id should be a run, but is 990", "seal 2: its run 990 is missing, or has two seals"),
    "a target retired months ago": InDatabase(
        f"UPDATE target SET retired_at = {EARLY} WHERE retired_at IS NOT NULL", "target.retired_at"),
    "a scope with another key": InDatabase(
        """UPDATE sync_run SET scope = replace(scope, '{"schedules"', '{"targets":[],"schedules"') WHERE id = 2""",
        "sync_run.scope should be an object", "run 2 (seal 2): scope is none"),
    "a scope with a key twice": InDatabase(
        """UPDATE sync_run SET scope = replace(scope, '"org_id"', '"org_id":"o9","org_id"') WHERE id = 2""",
        "sync_run.scope should be an object"),
    "a scope that is no JSON": InDatabase(
        "UPDATE sync_run SET scope = 'x' WHERE id = 2",
        "run 2 (seal 2): sync_run should be readable", "no bundle was written"),
    "a hold that is no JSON": InDatabase(
        "UPDATE hold_event SET flow_ids = '['",
        "a row of the target after version 0 should be readable", "no bundle was written"),
    "a hold whose workflows are written in another way": InDatabase(
        "UPDATE hold_event SET flow_ids = replace(flow_ids, ',', ', ') WHERE flow_ids LIKE '%,%'",
        "hold_event.flow_ids should be an array, as runs write it"),
    "a hold whose workflows are escaped": InDatabase(
        r"""UPDATE hold_event SET flow_ids = replace(flow_ids, '"3"', '"\u0033"') WHERE kind = 'held'""",
        "hold_event.flow_ids should be an array, as runs write it"),
    "a seal before the first, of no run": InDatabase(
        copied("run_seal", id="1 - id", run_id=999),
        "run_seal.id should be 1, after the seal 0, but is 0", "seal 1: id should be 1, but is 0"),
    "a time stamp of a seal before the first": InDatabase(
        f"INSERT INTO seal_timestamp (seal_id, token, stamped_at) VALUES (-1, x'00', {EARLY})",
        "seal_timestamp -1.seal_id should be a seal", "time stamp of seal -1: is not one of this seal"),
    "a time stamp of another seal": InDatabase(
        "UPDATE seal_timestamp SET seal_id = 1",
        "seal_timestamp 1.token should be a time stamp of", "time stamp of seal 1: is not one of this seal"),
    "a time stamp of a seal that is not there": InDatabase(
        "UPDATE seal_timestamp SET seal_id = 99",
        "seal_timestamp 99.seal_id should be a seal", "time stamp of seal 99: is not one of this seal"),
    "a time stamp of another time": InDatabase(
        f"UPDATE seal_timestamp SET stamped_at = {EARLY}", ".stamped_at should be "),
    "a time stamp that is none": InDatabase(
        "UPDATE seal_timestamp SET token = x'00'", ".token should be a time stamp of", "is not one of this seal"),
    "a trail that begins after the last seal": InDatabase(
        copied("trail", "true", id=0, trail_id="'other'", reason="'copied'", first_seal=99),
        "trail.first_seal of 'other' should be from 1 to",
        "trails.jsonl: a trail begins with seal 99, and the last seal is 16"),
    "a kept answer of other bytes": InDatabase(
        f"UPDATE answer SET body = x'{zlib.compress(b'[]').hex()}', length = 2",
        "o1/u000, version 1: answer.body should be the 2 bytes of", "no bundle was written"),
    "a kept answer of another length": InDatabase(
        "UPDATE answer SET length = length + 1", "of another length than its row says", "no bundle was written"),
    "a kept answer that is damaged": InDatabase(
        "UPDATE answer SET body = x'00ff'", "but is damaged: Error -3", "no bundle was written"),
    "a kept answer in another encoding": InDatabase(
        "UPDATE answer SET encoding = 'rot13'", "encoded as 'rot13', which nobody can read", "no bundle was written"),
    "a kept answer of no hash": InDatabase(
        copied("answer", "first_run_id = 1", data_hash="''"), "answer.body should be the 379 bytes of ''"),
    "a user and a list with the lowest number of all": InDatabase(
        f"""INSERT INTO target (id, org_id, user_id) VALUES ({LOWEST}, 'o1', 'zoe');
        {copied("workflow", "target_id = 1", target_id=LOWEST)}""",
        f"target.id should be numbered from 1, but is numbered from {LOWEST}"),
    "a run with the lowest number of all": InDatabase(
        copied("sync_run", id=LOWEST),
        f"sync_run.id should be numbered from 1, but is numbered from {LOWEST}", f"run {LOWEST}: has no seal"),
    "a membership of a run with the highest number of all": InDatabase(
        copied("target_membership", run_id=HIGHEST), f"run_id should be without rows of run {HIGHEST}"),
    "an issue of a run with the lowest number of all": InDatabase(
        f"{INVENTED} VALUES ({LOWEST}, 1, 'failed', 'x')", f"run_id should be without rows of run {LOWEST}"),
    "a membership of nobody": InDatabase(
        copied("target_membership", target_id=999), "target_membership should be without rows of target 999"),
    "a hold of nobody": InDatabase(
        copied("hold_event", target_id=999), "hold_event should be without rows of target 999"),
    "a span with an observation more": InDatabase(
        f"UPDATE observation SET observations = observations + 1 {OPEN_SPAN}",
        "observation.observations should be 2, by the runs that asked", "observation.observations from",
        "observation"),
    "a span with an observation less": InDatabase(
        f"UPDATE observation SET observations = observations - 1 {OPEN_SPAN}",
        "observation.observations should be 2, by the runs that asked", "observation: 1 observations from",
        "observation"),
    "a span that is over with an observation more": InDatabase(
        "UPDATE observation SET observations = observations + 1 WHERE version = 1 AND target_id = 2",
        "o1/u001, version 2: change_set.hash", "o1/u001, version 2: change_set.hash"),
    "a span that begins earlier": InDatabase(
        f"UPDATE observation SET first_at = (SELECT finished_at FROM sync_run WHERE id = 14) {OPEN_SPAN}",
        "observation.first_at should be in the time of a run that observed the target",
        "o1/u000, version 3: observation", "observation"),
    "a span that ends later": InDatabase(
        f"UPDATE observation SET last_at = {LATE} {OPEN_SPAN}",
        "observation.last_at should be in the time of a run that observed the target",
        "o1/u000, version 3: observation", "observation"),
    "a span cut short": InDatabase(
        f"UPDATE observation SET last_at = first_at {OPEN_SPAN}",
        "observation.observations should be 1, by the runs", "observation: 2 observations from", "observation"),
    "a span of a version that is not there": InDatabase(
        copied("observation", "version = 1", version=9), "observation.version should be one of the versions 1 to 3"),
    "a span before the first version": InDatabase(
        copied("observation", "version = 1", version=0),
        "observation.version should be one of the versions 1 to 3",
        "o1/u000, version 0: observation: rows of a version that is not there"),
    "a failure invented in a span": InDatabase(
        f"""{INVENTED}
        SELECT max(sync_run.id), target.id, 'failed', 'x' FROM sync_run, target WHERE user_id = 'u000'""",
        "observation.observations should be 1, by the runs that asked", "observation.observations from"),
    "a fence set back": InDatabase("UPDATE target SET fence = 2 WHERE id = 1", "target.fence should be at least 3"),
    "a cycle altered in a list": InDatabase(
        "UPDATE workflow SET cycle = 'M' WHERE target_id = 2", "workflow.cycle of '1' should be 'D', but is 'M'"),
    "a held workflow under another number": InDatabase(
        f"UPDATE workflow SET flow_id = '99' {FLOW_3}", "workflow should be without flow_id '99'"),
    "missing workflows where nothing is held": InDatabase(
        f"UPDATE workflow SET missing_since = {LATE} WHERE target_id = 1",
        "workflow.missing_since should be null, since nothing of its target is held"),
    "a workflow missing for longer": InDatabase(
        f"UPDATE workflow SET missing_since = {EARLY} {FLOW_3}", "workflow.missing_since of '3' should be after"),
    "a workflow not missing": InDatabase(
        f"UPDATE workflow SET missing_since = NULL {FLOW_3}", "workflow.missing_since should be 4, but is 3"),
    "a hold of nothing": InDatabase(
        f"UPDATE target SET held_since = {LATE}, observation_id = NULL WHERE id = 1",
        "target.held_since should be null, since nothing of it is held"),
    "a hold that begins later": InDatabase(
        f"UPDATE target SET held_since = {LATE} WHERE id = 4", "target.held_since should be not after"),
    "a hold that begins earlier": InDatabase(
        f"UPDATE target SET held_since = {EARLY} WHERE id = 4", "target.held_since should be after"),
    "a held answer that is the list": InDatabase(
        "UPDATE target SET answer_digest = state_digest WHERE id = 4", "target.answer_digest should be a digest other"),
    "an event that is more than proven": InDatabase(
        "UPDATE org_event SET proven_for_all = 2 WHERE proven_for_all = 1",
        "org_event.proven_for_all should be 0, 1 or null"),
    "a disappearance deleted": InDatabase(
        "DELETE FROM org_event WHERE kind = 'disappeared'",
        "run 15 (seal 15): run_seal.events_digest", "run 15 (seal 15): events_digest",
        story="was lost by u000, but there is no event and nothing waits"),
    "a disappearance that is a loss of access": InDatabase(
        "UPDATE org_event SET kind = 'access_lost', user_id = 'u001' WHERE kind = 'disappeared'",
        "run 15 (seal 15): run_seal.events_digest", "run 15 (seal 15): events_digest", story="but there is no event"),
    "a return before the first appearance": InDatabase(
        "UPDATE org_event SET kind = 'reappeared' WHERE kind = 'appeared'",
        "run 3 (seal 3): run_seal.events_digest", "run 3 (seal 3): events_digest", story="reappeared after it None"),
    "an appearance with another cycle": InDatabase(
        "UPDATE org_event SET new_cycle = 'H' WHERE kind = 'appeared'",
        "run 3 (seal 3): run_seal.events_digest", "run 3 (seal 3): events_digest",
        story="no answer of that time shows it"),
    "events that take no time": InDatabase(
        "UPDATE org_event SET last_unchanged_at = observed_at",
        "run 3 (seal 3): run_seal.events_digest", "run 3 (seal 3): events_digest", story="ends before it begins"),
    "a workflow of the organisation with fewer users": InDatabase(
        "UPDATE org_flow SET users = 1 WHERE flow_id = '2'", "", story="has 1 users, and 3 list it"),
    "a workflow of the organisation with another cycle": InDatabase(
        "UPDATE org_flow SET cycle = 'H' WHERE flow_id = '2'", "",
        story="is ('name 2', 'D') to everybody, and ('name 2', 'H')"),
    "a workflow of the organisation deleted": InDatabase(
        "DELETE FROM org_flow WHERE flow_id = '2'", "", story="is listed, and no step has judged it"),
    "versions that no step has judged": InDatabase(
        "UPDATE target SET projected_version = 1", "", story="has versions that no step has judged"),
}  # fmt: skip
