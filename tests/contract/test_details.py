"""Details of changed workflows: stored once, shown beside the changes, and never an obstacle to a run."""

from __future__ import annotations

import datetime as dt
import json
import zlib
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from etl import sync
from etl.database import reading
from etl.demo.world import World
from etl.domain.model import Flow, Target
from etl.errors import DatabaseError
from etl.notify.digest import digest_of
from etl.report.details import detail_sentences, details_of_changes, details_of_flow, states_with_details
from etl.report.listings import CHANGES, EVENTS, HISTORY
from etl.report.workflow_page import user_changes
from etl.store import Store
from etl.sync import DetailLimits, RunReport
from tests.support.enos import Fault, LocalGateway
from tests.support.house import House

ORG = "o1"
USERS = ("alice", "bob", "carol")
TARGETS = [Target(ORG, user) for user in USERS]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
LIMIT = DetailLimits(most=1000, within=dt.timedelta(seconds=20), keep_body=True)


class DetailHouse(House):
    """``ask_all`` is one run over all users."""

    def ask_all(self, limits: DetailLimits | None = LIMIT, store: Store | None = None) -> RunReport:
        report = self.run(*TARGETS, details=limits, store=store)
        assert report is not None
        return report


@pytest.fixture
def house(engine: Engine, database_url: str) -> Iterator[DetailHouse]:
    world = World(orgs=0)
    for user in USERS:
        world.set_flows(ORG, user, [Flow(str(number), f"flow {number}", "D", True) for number in range(1, 21)])
    with LocalGateway(world) as local:
        house = DetailHouse(engine, database_url, local, concurrency=4)
        house.ask_all()
        yield house


def test_the_detail_of_a_changed_workflow_is_requested_once_for_all_its_users(house: DetailHouse) -> None:
    assert house.upstream.calls("details") == 0, "a baseline is no change"
    house.world.set_cycle(ORG, "3", "H")
    house.world.rename(ORG, "4", "another")
    house.world.remove_flow(ORG, "5")
    house.upstream.updates[ORG, "3"] = {"updateUser": "mallory", "freq": "0 0 * * * ? *"}
    report = house.ask_all()
    assert (report.status, report.details and report.details.asked) == ("succeeded", 2)
    assert house.upstream.calls("details") == 2
    rows = house.rows("SELECT flow_id, run_id, update_user, freq FROM workflow_detail ORDER BY flow_id")
    assert [row[0] for row in rows] == ["3", "4"], "what is gone cannot be asked for"
    assert rows[0][1:] == (report.run_id, "mallory", "0 0 * * * ? *")
    body = house.rows("SELECT body FROM workflow_detail WHERE flow_id = '3'")[0][0]
    assert json.loads(zlib.decompress(body))["flowId"] == 3
    assert house.ask_all().details == sync.Details()
    assert house.upstream.calls("details") == 2, "a quiet run asks for none"


def test_details_stand_beside_the_change_and_the_latest_have_a_view(house: DetailHouse) -> None:
    house.world.set_cycle(ORG, "3", "H")
    house.ask_all()
    house.world.set_cycle(ORG, "3", "W")
    house.world.set_cycle(ORG, "4", "W")
    house.ask_all()
    events = [event for event in CHANGES.rows(house.engine, kind=["cycle_changed"]) if event.user_id == "bob"]
    with reading(house.engine) as connection:
        details, answers = details_of_changes(connection, events), details_of_flow(connection, "3", ORG)
    said = {(event.flow_id, event.new_cycle): each for event, each in zip(events, details, strict=True)}
    assert said["3", "H"][2:] == (None, "0 0 * * * ? *", None)
    assert said["3", "W"][2:4] == ("0 0 * * * ? *", "0 0 0 ? * 2 *")
    assert said["4", "W"][:1] == ("updater-1",)
    assert [each.freq for each in answers] == ["0 0 0 ? * 2 *", "0 0 * * * ? *"], "the newest first"
    assert house.rows("SELECT flow_id, freq FROM workflow_detail_latest ORDER BY flow_id") == [
        ("3", "0 0 0 ? * 2 *"),
        ("4", "0 0 0 ? * 2 *"),
    ]


def test_organisation_events_and_notifications_have_the_details_too(house: DetailHouse) -> None:
    house.world.set_cycle(ORG, "3", "H")
    house.ask_all()
    house.world.set_cycle(ORG, "3", "W")
    house.upstream.updates[ORG, "3"] = {"updateUser": "mallory", "updateTime": "2026-11-24 09:12:03.0"}
    house.world.add_flow(ORG, Flow("77", "late", "D", True))
    report = house.ask_all()
    events = "SELECT update_user, old_freq, new_freq FROM org_workflow_event WHERE flow_id = '3' ORDER BY event_id"
    assert house.rows(events) == [
        ("updater-1", None, "0 0 * * * ? *"),
        ("mallory", "0 0 * * * ? *", "0 0 0 ? * 2 *"),
    ]
    (run,) = [each for each in Store(house.engine).unnotified_runs(EPOCH) if each.id == report.run_id]
    told = digest_of(house.engine, run, ["cycle_changed", "appeared"], [])
    assert told is not None
    assert "EnOS: last updated by updater-1 at" in told.parts["appeared"].lines[0]
    (line,) = told.parts["cycle_changed"].lines
    assert line.endswith(
        "; EnOS: last updated by mallory at 2026-11-24 09:12:03.0; "
        "cron 0 0 0 ? * 2 * (at 00:00 on Monday), was 0 0 * * * ? * (at the start of every hour)"
    )


def test_an_event_rests_on_the_later_answers_of_its_run_too(house: DetailHouse) -> None:
    house.world.set_cycle(ORG, "3", "H")
    house.ask_all()
    with reading(house.engine) as connection:
        [event] = EVENTS.page(connection, 9, org=ORG)
        assert [each.user_id for each in user_changes(connection, [event])[event.event_id]] == [*USERS]


@pytest.mark.parametrize(("says", "kept"), [("GMT+8", "GMT+8"), ("GMT+25", None), (8, None), (None, None)])
def test_a_detail_has_the_time_zone_that_enos_says_and_nothing_where_it_says_none(
    house: DetailHouse, says: object, kept: str | None
) -> None:
    house.upstream.timezone = says
    house.upstream.updates[ORG, "3"] = {"updateTime": "2019-01-01 10:00:00.0"}
    house.world.set_cycle(ORG, "3", "H")
    report = house.ask_all()
    assert (report.status, report.details and report.details.failed) == ("succeeded", 0)
    assert house.rows("SELECT enos_timezone FROM workflow_detail") == [(kept,)]
    with reading(house.engine) as connection:
        changes = list(CHANGES.rows(house.engine, kind=["cycle_changed"]))
        (said, *_) = detail_sentences(connection, changes, None)
    assert ("before this change" in said) == (kept is not None)


def test_the_history_of_a_workflow_has_the_details_of_each_state(house: DetailHouse) -> None:
    house.world.set_cycle(ORG, "3", "H")
    house.ask_all()
    states = list(states_with_details(house.engine, "3", HISTORY.rows(house.engine, flow="3")))
    assert {(each["from_kind"], each["update_user"], each["new_freq"]) for each in states} == {
        ("baseline", None, None),
        ("cycle_changed", "updater-1", "0 0 * * * ? *"),
    }
    assert len(states) == 6


@pytest.mark.parametrize("statement", ["UPDATE workflow_detail SET update_user = 'x'", "DELETE FROM workflow_detail"])
def test_details_cannot_be_rewritten(house: DetailHouse, statement: str) -> None:
    house.world.set_cycle(ORG, "3", "H")
    house.ask_all()
    with pytest.raises(Exception, match="append-only"), house.engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("hang", times=None, endpoint="details"),
        Fault("html", times=None, endpoint="details"),
        Fault("code", times=None, endpoint="details", code=62103),
        Fault("code", times=None, endpoint="details", code=99500),
        Fault("status", times=None, endpoint="details", status=503),
        Fault("outage", times=None, endpoint="details"),
        Fault("raw", times=None, endpoint="details", body=b'{"code":0,"data":{"flowId":"999"}}'),
    ],
    ids=lambda fault: f"{fault.kind} {fault.code}" if fault.kind == "code" else fault.kind,
)
def test_a_failing_detail_service_changes_neither_verdict_nor_result(house: DetailHouse, fault: Fault) -> None:
    for number in range(1, 10):  # fewer than the guard doubts
        house.world.set_cycle(ORG, str(number), "H")
    house.upstream.order(fault)
    report = house.ask_all(DetailLimits(most=1000, within=dt.timedelta(seconds=1), keep_body=True))
    assert (report.status, dict(report.tally.verdicts)) == ("succeeded", {"changed": 3})
    assert report.details is not None
    assert report.details.asked + report.details.left_out == 9
    assert report.details.failed == report.details.asked > 0
    assert house.rows("SELECT count(*) FROM workflow_detail") == [(0,)]
    committed = house.rows("SELECT max(observed_at) FROM change_set")[0][0]
    assert house.rows("SELECT count(*) FROM sync_run WHERE status = 'succeeded' AND finished_at IS NOT NULL") == [(2,)]
    house.upstream.clear_faults()
    house.world.set_cycle(ORG, "7", "W")
    again = house.ask_all()
    assert again.details is not None
    assert (again.details.asked, again.details.failed) == (1, 0), "it is asked for again with its next change"
    assert house.rows("SELECT max(observed_at) FROM change_set")[0][0] > committed


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_no_more_details_are_requested_than_allowed(house: DetailHouse) -> None:
    for number in range(1, 10):  # fewer than the guard doubts
        house.world.set_cycle(ORG, str(number), "H")
    report = house.ask_all(DetailLimits(most=5, within=dt.timedelta(seconds=20), keep_body=False))
    assert report.details == sync.Details(asked=5, capped=True)
    assert house.upstream.calls("details") == 5
    assert house.rows("SELECT count(*), count(body) FROM workflow_detail") == [(5, 0)]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_details_that_cannot_be_written_do_not_change_the_result_of_the_run(house: DetailHouse) -> None:
    class Refusing(Store):
        def add_details(self, *_: object, **__: object) -> None:
            raise DatabaseError("disk full")

    house.world.set_cycle(ORG, "3", "H")
    report = house.ask_all(store=Refusing(house.engine))
    assert report.status == "succeeded"
    assert report.details == sync.Details(failed=1)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_details_are_requested_only_where_they_are_configured(house: DetailHouse) -> None:
    house.world.set_cycle(ORG, "3", "H")
    assert house.ask_all(None).details is None
    assert house.upstream.calls("details") == 0
