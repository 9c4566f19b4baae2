"""A year of runs with everything that goes wrong is sound on both databases, and after every copy and backup."""

from __future__ import annotations

import datetime as dt
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import psycopg
import pytest
from sqlalchemy import Engine

from etl import signing
from etl.audit import Extent, check, write_bundle
from etl.database import backup, connect, upgrade
from etl.signing.keys import PublicKey
from etl.signing.timestamps import Authorities
from etl.store import copy
from etl.verify import Answers, Sealing, against, heads, seal_lines, verify
from tests.support import postgres as local_postgres
from tests.support.authority import Authority, served
from tests.support.postgres import tools_of
from tests.support.questions import now
from tests.support.trails import House
from tests.support.years import BEGIN, Year


class Lived(NamedTuple):
    """A trail of a year, and what was kept of it elsewhere."""

    engine: Engine
    key: PublicKey
    authorities: Authorities
    kept: list[bytes]

    def found(self, engine: Engine) -> list[str]:
        """What is wrong there, with everything checked that can be."""
        trusted = {"keys": [self.key], "authorities": self.authorities}
        found = [str(each) for each in verify(engine, answers=Answers(), sealing=Sealing(), **trusted)]  # type: ignore[arg-type]
        return found + [str(each) for each in against(engine, self.kept)]


@pytest.fixture
def lived(engine: Engine, tmp_path: Path) -> Lived:
    """The seals are signed, one a month is stamped, and every answer that changed something is kept."""
    signing.generate_key(tmp_path / "seal.pem")
    key, authority = signing.load_signing_key(tmp_path / "seal.pem"), Authority(tmp_path / "tsa")
    with served(authority.answer) as url:
        Year(engine, key.sign, lambda house: stamped(house, url)).live()
    kept = [msgspec.json.encode(line) for line in (*heads(engine, now()), *seal_lines(engine))]
    return Lived(engine, key.public, signing.load_authorities(authority.root), kept)


def stamped(house: House, url: str) -> None:
    last = house.store.last_seal()
    assert last is not None
    stamp = signing.timestamps_by(url)(last.message)
    assert house.store.keep_timestamp(last.seal_id, stamp.at, stamp.token)


@pytest.mark.timeout(180)
def test_a_year_verifies_where_it_was_made_and_wherever_it_is_taken(
    lived: Lived, tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere: Callable[[], Engine],
    restored: Callable[[Engine, Path], Engine],
) -> None:  # fmt: skip
    went, sealing = Answers(), Sealing()
    assert [str(each) for each in verify(lived.engine, keys=[lived.key], answers=went, sealing=sealing)] == []
    assert sealing.seals == sealing.signed > 84
    assert (sealing.stamped, sealing.unsealed_runs, went.versions - went.proven) == (12, 0, 0)
    assert lived.found(lived.engine) == []

    copied = elsewhere()
    copy.copy(lived.engine, copied)
    assert lived.found(copied) == []
    House(copied).serve({})  # a trail of its own, which goes on
    assert lived.found(copied)[0].endswith("should be there, since a seal before it is signed, but is null")

    assert lived.found(restored(lived.engine, tmp_path)) == []

    kept = tmp_path / "kept.jsonl"
    kept.write_bytes(b"".join(line + b"\n" for line in lived.kept if b"trail_id" in line))
    for extent in EXTENTS:
        file = io.BytesIO()
        done = write_bundle(lived.engine, file, extent, now())
        (tmp_path / "year.zip").write_bytes(file.getvalue())
        options = ["--kept", str(kept), "--public-key", str(tmp_path / "seal.pem.pub")]
        code = check.main([str(tmp_path / "year.zip"), *options])
        printed = capsys.readouterr().out
        assert (code, done.runs > 0) == (0, True), (extent, printed)


QUARTERS = [BEGIN + dt.timedelta(days=78 * number) for number in range(5)]
EXTENTS = [
    Extent(),
    *(Extent(since, until) for since, until in pairwise(QUARTERS)),
    Extent(org_id="o2"),
    Extent(QUARTERS[1], QUARTERS[3], "o1"),
]


@pytest.fixture
def elsewhere(tmp_path: Path, dialect: str, request: pytest.FixtureRequest) -> Iterator[Callable[[], Engine]]:
    """An empty database of the other kind."""
    made: list[Engine] = []
    with database(request.getfixturevalue("postgres"), "year_copied") as url:

        def make() -> Engine:
            made.append(connect(url if dialect == "sqlite" else f"sqlite:///{tmp_path / 'copied.db'}"))
            upgrade(made[0])
            return made[0]

        yield make
        for engine in made:
            engine.dispose()


@pytest.fixture
def restored(dialect: str, request: pytest.FixtureRequest) -> Iterator[Callable[[Engine, Path], Engine]]:
    """What a backup holds: a file of SQLite, or what PostgreSQL's own tools make of theirs."""
    made: list[Engine] = []
    server: local_postgres.Server = request.getfixturevalue("postgres")

    def from_file(engine: Engine, folder: Path) -> Engine:
        backup.backup(engine, folder / "backup.db")
        made.append(connect(f"sqlite:///{folder / 'backup.db'}"))
        return made[0]

    def from_dump(engine: Engine, folder: Path) -> Engine:
        tools = {**os.environ, "PGPASSWORD": server.password, "PATH": f"{tools_of(server)}:{os.environ['PATH']}"}
        own = connect(server.url(engine.url.database or "", tcp=True))
        made.append(own)
        for line in backup.dump_of(own, folder / "saved.dump"):
            subprocess.run(line.replace("NEW", "year_restored"), shell=True, env=tools, capture_output=True, check=True)
        made.append(connect(server.url("year_restored")))
        return made[-1]

    yield from_file if dialect == "sqlite" else from_dump
    for engine in made:
        engine.dispose()
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS year_restored WITH (FORCE)")


@contextmanager
def database(server: local_postgres.Server, name: str) -> Iterator[str]:
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield server.url(name)
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
