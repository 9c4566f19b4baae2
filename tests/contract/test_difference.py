"""Two moments side by side: what differs between lists, what events prove of it, and how well both are known."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import random
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from etl.cli import app
from etl.database import reading
from etl.domain.model import Target
from etl.errors import UsageError
from etl.report.asof import flows_as_of, targets_as_of
from etl.report.difference import Comparison, of_organisation, of_target, organisation_differences, target_differences
from etl.report.listings import STATES
from etl.report.review import access_review
from etl.report.rows import Difference
from etl.report.targets import targets_of_user
from etl.store import RunBegun
from etl.store.acknowledgements import NewAcknowledgement
from tests.support.builders import flow
from tests.support.run_history import ANN, BOB, RunHistory

CID = Target("o1", "cid")
SECOND = dt.timedelta(seconds=1)
ONE, OTHER, HOURLY = flow(1), flow(1, name="other"), flow(1, cycle="H")


class Rooms(RunHistory):
    """Runs, each with the moment just after it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.moments = [self._next]

    def lists(self, ann: Any = None, bob: Any = None, cid: Any = None) -> None:
        """A run; who has no list is not configured any more."""
        answers = {who: list_ for who, list_ in zip((ANN, BOB, CID), (ann, bob, cid), strict=True) if list_ is not None}
        run_id = self.begin()
        self.store.retire_others(list(answers), self._next + SECOND, None)
        self.store.fences(list(answers), run=RunBegun(run_id, self._next))  # who was retired is back
        self.apply(run_id, answers)
        self.finish(run_id)
        self.moments.append(self._next + 10 * SECOND)

    def compared(self, user: str | None = None, *, old: int = 1, new: int = -1) -> tuple[Comparison, list[Difference]]:
        moments = self.moments[old], self.moments[new]
        with reading(self.engine) as connection:
            if user is not None:
                (known,) = targets_of_user(connection, "o1", user)
                compared = of_target(connection, known, *moments)
                return compared, target_differences(connection, known, compared)
            compared = of_organisation(connection, "o1", *moments)
            found = connection.execute(organisation_differences("o1", compared))
            return compared, [Difference(*row) for row in found]


CASES: dict[str, tuple[Sequence[Sequence[Any]], list[tuple[Any, ...]]]] = {
    "nothing changed": ([([ONE], []), ([ONE], [])], []),
    "it appeared": ([([], []), ([ONE], []), ([ONE], [])], [("1", "appeared", None, None, "map", None, "D")]),
    "it disappeared": ([([ONE], []), ([], []), ([], [])], [("1", "disappeared", None, "map", None, "D", None)]),
    "it came and went": ([([], []), ([ONE], []), ([], []), ([], [])], []),
    "it went and came back": ([([ONE], []), ([], []), ([], []), ([ONE], [])], []),
    "another name and cycle": (
        [([ONE], [ONE]), ([flow(1, "other", "H")], [flow(1, "other", "H")])],
        [("1", "cycle_changed", None, "map", "other", "D", "H"), ("1", "renamed", None, "map", "other", "D", "H")],
    ),
    "another name, and back": ([([ONE], []), ([OTHER], []), ([ONE], [])], []),
    "gone, and back with another cycle": (
        [([ONE], []), ([], []), ([], []), ([HOURLY], [])],
        [("1", "cycle_changed", None, "map", "map", "D", "H")],
    ),
    "access came, with the values of the end": (
        [([ONE], []), ([ONE], [ONE]), ([OTHER], [OTHER])],
        [
            ("1", "renamed", None, "map", "other", "D", "D"),
            ("1", "access_granted", "bob", None, "other", None, "D"),
        ],
    ),
    "access came and went": ([([ONE], []), ([ONE], [ONE]), ([ONE], [])], []),
    "moved from ann to bob at once": (
        [([ONE], []), ([], [ONE]), ([], [ONE])],
        [("1", "access_lost", "ann", "map", None, "D", None), ("1", "access_granted", "bob", None, "map", None, "D")],
    ),
    "moved from ann to bob, with nobody in between": (
        [([ONE], []), ([], []), ([], []), ([], [ONE])],
        [("1", "access_lost", "ann", "map", None, "D", None), ("1", "access_granted", "bob", None, "map", None, "D")],
    ),
    "a first look showed it": ([([],), ([], [ONE])], [("1", "baseline", None, None, "map", None, "D")]),
    "a first look of one more user": ([([ONE],), ([ONE], [ONE])], []),
    "its last user is no longer asked": ([([], [ONE]), ([],)], [("1", "not_asked", None, "map", None, "D", None)]),
    "one of its users is no longer asked": ([([ONE], [ONE]), ([ONE],)], []),
    "a user left, and is back with one more": (
        [([ONE, flow(2)], [ONE]), ([ONE, flow(2)],), ([ONE, flow(2)], [ONE, flow(2)])],
        [("2", "access_granted", "bob", None, "map", None, "D")],
    ),
}


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(("runs", "differences"), CASES.values(), ids=CASES.keys())
def test_what_differs_between_two_lists_of_an_organisation(
    engine: Engine, runs: Sequence[Sequence[Any]], differences: list[tuple[Any, ...]]
) -> None:
    rooms = Rooms(engine)
    for lists in runs:
        rooms.lists(*lists)
    _, found = rooms.compared()
    assert sorted((row[1:8] for row in found), key=str) == sorted(differences, key=str)


def test_differences_are_those_of_the_lists_whatever_happened(engine: Engine) -> None:
    """Random lists, users who leave and return: by two lists of flows --as-of, and of workflows --as-of."""
    dice = random.Random(7)
    rooms = Rooms(engine)
    variants = [ONE, OTHER, HOURLY, flow(2), flow(2, editable=False), flow(3)]
    for _ in range(16):
        chosen = [dice.sample(variants, dice.randrange(4)) if dice.random() < 0.85 else None for _ in range(3)]
        rooms.lists(*(each and list({one.flow_id: one for one in each}.values()) for each in chosen))
    rooms.moments += [each - 5 * SECOND for each in rooms.moments[1:]]  # exactly when something was observed
    rooms.moments.sort()
    kinds = set()
    for _ in range(30):
        old, new = sorted(dice.sample(range(1, len(rooms.moments)), 2))
        compared, found = rooms.compared(old=old, new=new)
        at = compared.old.at, compared.new.at
        before, after = ({row.flow_id: row for row in STATES.rows(engine, org="o1", at=each)} for each in at)
        assert (compared.old.flow_count, compared.new.flow_count) == (len(before), len(after))
        seen = {row[1:4] for row in found}
        kinds |= {row.kind for row in found}
        both = before.keys() & after.keys()
        assert {flow for flow, kind, _ in seen if kind in ("appeared", "baseline")} == after.keys() - before.keys()
        assert {flow for flow, kind, _ in seen if kind in ("disappeared", "not_asked")} == before.keys() - after.keys()
        for kind, name in (("renamed", "flow_name"), ("cycle_changed", "cycle")):
            differing = {each for each in both if getattr(before[each], name) != getattr(after[each], name)}
            assert {flow for flow, found_kind, _ in seen if found_kind == kind} == differing
        known = [
            {row.user_id: row.coverage for row in targets_as_of(engine, each) if row.observed_before} for each in at
        ]
        lists = [{(row.flow_id, row.user_id): row for row in flows_as_of(engine, each)} for each in at]
        for kind, here, there in (("access_granted", lists[1], lists[0]), ("access_lost", lists[0], lists[1])):
            moved = {(flow, user) for flow, user in here.keys() - there.keys() if flow in both}
            moved = {(flow, user) for flow, user in moved if user in known[0].keys() & known[1].keys()}
            assert {(row.flow_id, row.user_id) for row in found if row.kind == kind} == moved
            for row in found:
                if row.kind == kind:
                    then = here[row.flow_id, row.user_id]
                    values = row.new_name or row.old_name, row.new_cycle or row.old_cycle
                    assert values == (then.flow_name, then.cycle)
                    assert {row.old_editable, row.new_editable} == {None, then.editable}
                    assert [row.old_coverage, row.new_coverage] == [each[row.user_id] for each in known]
    assert len(kinds) >= 7, kinds


def test_two_moments_say_how_well_they_are_known_and_why_they_cannot_be_compared(engine: Engine) -> None:
    rooms = Rooms(engine)
    rooms.lists(bob=[ONE])
    rooms.lists([ONE], "62109")
    rooms.lists([OTHER], [OTHER, flow(2)])
    rooms.lists([OTHER])
    compared, found = rooms.compared(new=3)
    first, last = compared.old, compared.new
    assert (first.lists, first.observed, first.unobserved, first.not_known, first.coverage) == (
        2,
        0,
        1,
        1,
        "unobserved",
    )
    assert (last.lists, last.not_known, last.unobserved) == (2, 0, 1), "bob was retired afterwards"
    assert {(row.old_coverage, row.new_coverage) for row in found} == {("unobserved", "unobserved")}
    _, of_bob = rooms.compared("bob", new=3)
    assert [row[1:4] for row in of_bob] == [("1", "renamed", "bob"), ("2", "added", "bob")]
    refused = {
        (None, 0, 3): ("the first look was at", 5),
        ("ann", 1, 3): ("the first look was at", 65),
        ("bob", 1, 4): ("nobody asked any more at", 190),
    }
    for (user, old, new), (words, seconds) in refused.items():
        began = rooms.moments[1] - 10 * SECOND
        assert rooms.compared(user, old=old, new=new)[0].refusal == (words, began + seconds * SECOND)
    assert rooms.compared(new=4)[0].refusal is None
    with reading(engine) as connection:
        refusal = of_organisation(connection, "o2", *rooms.moments[:2]).refusal
    assert refusal == ("no list to compare was observed yet", None)


def test_a_review_has_a_row_for_each_user_and_workflow_and_for_each_list_without_any(engine: Engine) -> None:
    """With the last change until then, its ticket, and how well the list is known."""
    rooms = Rooms(engine)
    rooms.lists([ONE, flow(2)], [], "62109")
    rooms.lists([flow(1, "other", "H"), flow(2)], [ONE], "62109")
    rooms.lists([flow(1, "other", "H"), flow(2)], [ONE], "62109")
    agreed = [
        NewAcknowledgement(made_by="eve", org_id="o1", kind=kind, ticket=f"CHG-{kind}") for kind in ("renamed", "added")
    ]
    rooms.store.acknowledge(agreed, rooms.moments[3])
    review = [
        ("ann", "1", "other", "hour", True, "observed", "cycle changed, renamed", "CHG-renamed"),
        ("ann", "2", "map", "day", True, "observed", "baseline", None),
        ("bob", "1", "map", "day", True, "observed", "added", "CHG-added"),
        ("cid", None, None, None, None, "not known", None, None),
    ]
    columns = ("user_id", "flow_id", "flow_name", "cycle_label", "editable", "known", "last_change", "ticket")
    chosen = attrgetter(*columns)
    assert list(map(chosen, access_review(engine, "o1", rooms.moments[2]))) == review
    last = list(access_review(engine, "o1", rooms.moments[3] + 10 * SECOND))
    seen = rooms.moments[3] - 5 * SECOND
    assert [row.known for row in last] == [*["as last observed"] * 3, "not known"]
    assert {row.last_observed_at for row in last} == {seen, None}
    first, second, *_ = last
    assert (second.first_listed_at, first.changed_at, first.reviewer, first.decision) == (
        *(rooms.moments[at] - 5 * SECOND for at in (1, 2)),
        None,
        None,
    )
    between = "between two looks that differ"
    assert list(map(chosen, access_review(engine, "o1", rooms.moments[1]))) == [
        ("ann", "1", "map", "day", True, between, "baseline", None),
        ("ann", "2", "map", "day", True, between, "baseline", None),
        ("bob", None, None, None, None, between, None, None),
        ("cid", None, None, None, None, "not known", None, None),
    ]
    rooms.lists([ONE], [])
    assert [chosen(row)[:2] for row in access_review(engine, "o1", rooms.moments[-1])] == [("ann", "1"), ("bob", None)]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_command_prints_a_table_json_or_csv_and_refuses_what_has_no_answer(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    settings = tmp_path / "flowtrail.toml"
    settings.write_text(f'[database]\nurl = "{database_url}"\n')
    rooms = Rooms(engine)
    rooms.lists([flow(1, name="=1+1")], [])
    rooms.lists([flow(2)], [])
    rooms.lists([flow(2)], [])

    def diff(old: object, new: object, *options: str) -> Result:
        return CliRunner().invoke(app, ["diff", "--config", str(settings), "--org", "o1", *options, str(old), str(new)])

    old, new = rooms.moments[1], rooms.moments[3]
    told = json.loads(diff(old, new, "--json").stdout)
    assert [(row["flow_id"], row["kind"]) for row in told["differences"]] == [("1", "disappeared"), ("2", "appeared")]
    sides = [(side["flow_count"], side["lists"], side["not_known"]) for side in (told["from"], told["to"])]
    assert sides == [(1, 2, 0), (1, 2, 0)]
    rows = list(csv.DictReader(io.StringIO(diff(old, new, "--csv", "--user", "ann").stdout)))
    assert [(row["flow_id"], row["kind"], row["old_name"]) for row in rows] == [
        ("1", "removed", "'=1+1"),
        ("2", "added", ""),
    ]
    assert "disappeared, cycle day" in diff(old, new).stdout
    assert "What differs: nothing" in diff(new, new).stdout
    assert json.loads(diff(new, new, "--json").stdout)["differences"] == []
    first = rooms.moments[1] - 5 * SECOND
    refused = {
        (new, old): "FROM must not be later than TO",
        ("2020-01-01", new): f"the first look was at {first}",
        (old, "soon"): "is not a time",
        (old, new, "--json", "--csv"): "exclude each other",
        (old, new, "--expression", "e"): "--user",
        (old, new, "--user", "ann", "--expression", "e"): "no list",
        (old, new, "--user", "anne"): "Did you mean 'ann'?",
    }
    book, review = tmp_path / "r.xlsx", ["review", "--config", str(settings), "--org", "o1", "-o"]
    for asked, sentence in (
        ([str(tmp_path / "r.json")], "is a .csv or an .xlsx file"),
        ([str(book), "--as-of", "2020-01-01"], "Not observed then"),
        ([str(book)], ""),
        ([str(book)], "--force replaces it"),
    ):
        done = CliRunner().invoke(app, [*review, *asked])
        assert (done.exception is None, sentence in str(done.exception)) == (not sentence, True), done.exception
    assert sorted(each.name for each in tmp_path.glob("r.*")) == ["r.xlsx", "r.xlsx.manifest.json"]
    for (begin, end, *more), sentence in refused.items():
        done = diff(begin, end, *more)
        assert (type(done.exception), sentence in str(done.exception)) == (UsageError, True), (begin, end, more)


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(
    ("left", "sentence"),
    {
        "only a directory": ({}, "No user's whole list is known here"),
        "only a search": ({Target("o1", "ann", "e"): [ONE]}, "No user's whole list is known here"),
        "a user who failed": ({ANN: "62109"}, "Not observed yet: 1 target was asked for, without a valid answer"),
        "a user who was retired": ({ANN: [ONE]}, "No workflows then: 1 target was retired then"),
    }.values(),
)
def test_a_review_without_any_users_list_is_refused_whatever_the_directory_says(
    engine: Engine, database_url: str, tmp_path: Path, left: dict[Target, Any], sentence: str
) -> None:
    """Nor does the list of workflows say that lists were empty."""
    settings, directory = tmp_path / "flowtrail.toml", Target("o1", "")
    settings.write_text(f'[database]\nurl = "{database_url}"\n')
    history = RunHistory(engine)
    history.run({directory: [ONE], **left})
    history.store.retire_others([directory], dt.datetime.now(dt.UTC), None)
    told = CliRunner().invoke(app, ["workflows", "--config", str(settings), "--org", "o1", "--as-of", "now"])
    assert ANN in left or sentence in told.stdout
    asked = ["review", "--config", str(settings), "--org", "o1", "-o", str(tmp_path / "r.csv")]
    done = CliRunner().invoke(app, asked)
    assert (type(done.exception), sentence in str(done.exception)) == (UsageError, True), done.exception
    assert not list(tmp_path.glob("r.*"))
