"""Trails with everything that a seal covers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import pytest
from sqlalchemy import Engine, text

from etl import signing, sync
from etl.domain.guard import Limits
from etl.domain.model import Flow, Target
from etl.errors import Refused
from etl.signing.timestamps import TimeStamp
from etl.store import NewAcknowledgement, NewRun, Store
from etl.store.seals import Sign
from etl.verify import heads, seal_lines, verify
from tests.support import checker, story_checker
from tests.support.authority import Authority, served
from tests.support.builders import flow, numbered
from tests.support.databases import Fill
from tests.support.questions import Runs, Upstream, now, users

ANN, BEN, CAT, DAN = users(4)
Lists = dict[str, Sequence[Target]]


class House(Runs):
    """Runs of schedules whose lists may change in between."""

    def __init__(self, engine: Engine, sign: Sign | None = None) -> None:
        first: dict[Target, Sequence[Flow]] = {target: numbered(1, 6) for target in (ANN, BEN, CAT, DAN)}
        super().__init__(engine, Upstream(first), Limits(min_removed=3), sign)
        self.store = Store(engine, sign=sign)

    def serve(
        self,
        lists: Lists,
        *,
        org: str | None = None,
        gaps: Mapping[str, dt.timedelta] = {},
        asked_as: Mapping[str, str] = {},
    ) -> sync.RunReport:
        self.upstream.asked.clear()
        self.upstream.stop.clear()
        asked = {target for listed in lists.values() for target in listed if org in (None, target.org_id)}
        targets = sorted(asked)
        scope: dict[str, Any] = {"lists": lists, "gaps": gaps, "org_id": org, "asked_as": asked_as}
        new = NewRun(origin="command", host="here", pid=1, targets=len(targets), **scope)
        with self.run_context() as (context, batches):
            report = sync.run(context, new, targets, batches, clock=self.upstream.clock)
        assert report is not None
        return report

    def approve(self, target: Target) -> sync.RunReport:
        return self.run([target], by="ada")

    def acknowledge(self, *scopes: dict[str, Any]) -> None:
        """Each an acknowledgement of ann's organisation, by ada."""
        new = [NewAcknowledgement(made_by="ada", org_id=ANN.org_id, **scope) for scope in scopes]
        self.store.acknowledge(new, now())

    def stamp_last_seal(self, authority: Callable[[bytes], TimeStamp]) -> None:
        last = self.store.last_seal()
        assert last is not None
        stamp = authority(last.message)
        assert self.store.keep_timestamp(last.seal_id, stamp.at, stamp.token)


def live(house: House) -> None:
    """Joins, leaves, a failure, a hold that ends and one that is approved, a retirement and a return, a dead run."""
    lists = house.upstream.lists
    house.serve({"plants": [ANN, BEN], "wind": [CAT]})
    house.serve({"plants": [ANN, BEN], "wind": [CAT]})
    lists[ANN] = [*numbered(1, 5), flow(7)]
    house.upstream.says = lambda target, n: Refused("no", code="62101") if target == BEN else lists[target]
    house.serve({"plants": [ANN, BEN]})
    house.upstream.says = lambda target, n: lists[target]
    lists[BEN] = numbered(1, 2)
    house.acknowledge(
        {"flow_id": "7", "kind": "appeared", "ticket": "CHG-1", "note": "as planned", "until": now()},
        {"user_id": BEN.user_id, "after": now()},
    )
    house.serve({"plants": [ANN, BEN, DAN]})
    house.store.revoke(2, "ada", None, now())
    lists[BEN] = numbered(1, 3)
    house.serve({"plants": [ANN, BEN, DAN]})
    house.approve(BEN)
    house.store.retire_others([ANN, BEN, CAT], now(), None)
    house.serve({"plants": [ANN, BEN, DAN]})
    die(house)
    house.serve({"plants": [ANN, BEN, DAN]})
    house.store.retire_others([ANN, BEN, DAN], now(), None)
    house.store.prune_runs(now() + dt.timedelta(days=1), now() + dt.timedelta(days=30), has_receivers=False)


def die(house: House) -> int:
    """Begin a run whose heartbeat stops, and have it declared dead."""
    run_id = house.store.begin_run(NewRun(origin="command", host="h", pid=1, targets=1), now(), [ANN])
    assert run_id is not None
    long_ago = now() - dt.timedelta(hours=1)
    change(house.engine, "UPDATE sync_run SET heartbeat_at = :at WHERE id = :id", at=stamp(house, long_ago), id=run_id)
    assert house.store.abort_abandoned_runs(now()) == [run_id]
    return run_id


def stamp(house: House, moment: dt.datetime) -> Any:
    on_sqlite = house.engine.dialect.name == "sqlite"
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds") if on_sqlite else moment


def change(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def findings(engine: Engine) -> list[str]:
    return [str(finding) for finding in verify(engine)]


def contradictions(engine: Engine) -> list[str]:
    """What the checker of stories finds."""
    url = engine.url.render_as_string(hide_password=False)
    return story_checker.check(checker.tables_of(url), settled=True)


class Kept(NamedTuple):
    """What was kept elsewhere of a trail."""

    seals: Path
    heads: list[bytes]


@pytest.fixture
def lived(fill: Fill, tmp_path: Path) -> Kept:
    """A trail with everything in it is there: its last seal is stamped, and answers are kept."""
    seals, heads = fill("lived", _live_and_keep)
    (tmp_path / "kept.jsonl").write_bytes(b"".join(line + b"\n" for line in seals))
    return Kept(tmp_path / "kept.jsonl", heads)


def _live_and_keep(engine: Engine, url: str) -> tuple[list[bytes], list[bytes]]:
    house = House(engine)
    house.keeps_answers = True
    live(house)
    house.upstream.lists[ANN] = [*numbered(1, 5), flow(9)]
    house.serve({"plants": [ANN, BEN, DAN]})
    house.upstream.says = lambda target, n: Refused("no", code="62101")
    house.serve({"plants": [ANN, BEN, DAN]})
    house.upstream.says = lambda target, n: house.upstream.lists[target]
    house.serve({"plants": [ANN, BEN, DAN]})
    house.upstream.lists[DAN] = numbered(1, 2)
    house.serve({"plants": [ANN, BEN, DAN]})
    with TemporaryDirectory() as folder, served(Authority(Path(folder) / "tsa").answer) as url:
        house.stamp_last_seal(signing.timestamps_by(url))
    return [*map(msgspec.json.encode, seal_lines(engine))], [*map(msgspec.json.encode, heads(engine, now()))]
