"""The table at the end of docs/verify.md names every column of every table, and describes each correctly."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine

from etl import signing
from etl.database import connect, upgrade
from etl.domain.answers import Detail
from etl.domain.model import Flow, Target
from etl.schema import metadata
from etl.signing.keys import PublicKey
from etl.signing.timestamps import Authorities
from etl.store import NewRun
from etl.verify import Answers, verify
from tests.support.authority import Authority, served
from tests.support.builders import flow, numbered
from tests.support.intruder import Intruder
from tests.support.questions import now
from tests.support.trails import ANN, BEN, DAN, House, live

PAGE = Path(__file__).parents[2] / "docs" / "verify.md"
PROVEN = ("chain", "seal", "replay", "the key", "the authority")
UNPROVEN = ("nothing", "rights")
MARK = "<!-- every column of every table -->"


class Line(NamedTuple):
    """A row of the table."""

    table: str
    columns: list[str]
    word: str

    @property
    def is_proven(self) -> bool:
        return self.word.startswith(PROVEN)


def lines() -> Iterator[Line]:
    table = ""
    rows = re.findall(r"^\|(.*)\|(.*)\|(.*)\|$", PAGE.read_text("utf-8").partition(MARK)[2], re.MULTILINE)
    for first, columns, word in rows[1:]:
        named = re.findall(r"`(\w+)`", first)
        table = named[0] if named else table
        if not set(columns) <= set("- "):
            yield Line(table, columns.strip(" `").split(", "), word.strip())


def test_the_table_names_every_column_of_every_table_once() -> None:
    """The spans of the latest version are protected otherwise than those before."""
    told = Counter((line.table, column) for line in lines() for column in line.columns)
    there = {(table.name, column.name) for table in metadata.tables.values() for column in table.columns}
    assert told.keys() == there
    assert {each for each, count in told.items() if count > 1} <= {("observation", name) for name in SPAN}


DIRECTORY = Target(ANN.org_id, "")
SPAN = ("first_at", "last_at", "observations", "last_asked_at", "longest_gap_seconds", "interrupted")
DETAIL = Detail(
    org_id="o1", flow_id="1", asked_at=now(), observed_at=now(), update_user="u9", update_time="2026-01-01 10:00:00.0",
    creator="c", create_time="2025-01-01 10:00:00.0", owner="u1;u2", freq="0 0 1 * * ? *", active=1, type=1,
    locked=False, detail_hash=hashlib.sha256(b"{}").hexdigest(), body=b"{}",
)  # fmt: skip


class Lived(NamedTuple):
    """A trail with everything in it that a seal covers, and the key of its seals."""

    engine: Engine
    key: PublicKey
    authorities: Authorities

    def found(self, *, stamps: bool = False) -> list[str]:
        authorities = self.authorities if stamps else None
        return [
            str(finding) for finding in verify(self.engine, keys=[self.key], authorities=authorities, answers=Answers())
        ]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    folder = tmp_path_factory.mktemp("columns")
    signing.generate_key(folder / "seal.pem")
    key = signing.load_signing_key(folder / "seal.pem")
    engine = connect(f"sqlite:///{folder / 'flowtrail.db'}")
    upgrade(engine)
    house = House(engine, key.sign)
    live(house)
    for number in (1, 2, 3):
        house.upstream.lists[ANN] = [*numbered(1, 5), flow(8 + number)]
        house.upstream.lists[DIRECTORY] = [Flow(str(number), "map", None, None)]
        house.serve({"plants": [ANN, BEN, DAN, DIRECTORY]}, asked_as={ANN.org_id: ANN.user_id})
    house.upstream.lists[DAN] = numbered(1, 2)
    house.serve({"plants": [ANN, BEN, DAN, DIRECTORY]}, asked_as={ANN.org_id: ANN.user_id})
    run_id = house.store.begin_run(NewRun(origin="maintenance", host="h", pid=1, targets=0), now())
    assert run_id is not None
    house.store.close_run(run_id, now())
    house.store.add_details(run_id, [DETAIL], keep_body=True)
    house.store.seal_run(run_id, "succeeded", {}, now())
    authority = Authority(folder / "tsa")
    with served(authority.answer) as url:
        house.stamp_last_seal(signing.timestamps_by(url))
    yield Lived(engine, key.public, signing.load_authorities(authority.root))
    engine.dispose()


EMPTY = {
    *("answer", "roster", "roster_user", "overdue_notice", "condition", "verification", "lease"),
    *("organisation", "org_turnover", "org_loss", "webhook", "webhook_notice", "rule", "finding"),
}
"""This trail has no rows of these. `answer` has tests of its own; of the others nothing is protected."""


TRIED = [each for each in lines() if each.word.startswith((*PROVEN, *UNPROVEN)) and each.table not in EMPTY]


@pytest.mark.parametrize("line", TRIED, ids=str)
def test_the_table_describes_each_column_correctly(lived: Lived, line: Line) -> None:
    with Intruder(lived.engine) as intruder:
        found = {column: is_found(lived, intruder, line.table, column) for column in line.columns}
    assert any(was is not None for was in found.values()), "the trail has no value to alter"
    assert [column for column, was in found.items() if was is (not line.is_proven)] == []
    assert lived.found() == []


def is_found(lived: Lived, intruder: Intruder, table: str, column: str) -> bool | None:
    """Whether an altered cell is found; None where the trail has no value there."""
    keys = [each.name for each in metadata.tables[table].primary_key.columns]
    ended = " AND status <> 'running'" if table == "sync_run" else ""
    rows = intruder.run(f"SELECT * FROM {table} WHERE {column} IS NOT NULL{ended} ORDER BY {', '.join(keys)}")
    if not rows:
        return None
    row = rows[len(rows) // 2]
    altered = {column: intruder.different(metadata.tables[table].c[column], row[column])}
    there = intruder.set(table, row, **altered)
    found = bool(lived.found(stamps=table == "seal_timestamp"))
    intruder.set(table, there, **{column: row[column]})
    return found
