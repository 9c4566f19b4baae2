"""A year of runs with everything that goes wrong is sound on both databases, and so are its copy and its bundles."""

from __future__ import annotations

import datetime as dt
import io
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from sqlalchemy import Engine

from etl import signing
from etl.audit import Extent, check, write_bundle
from etl.signing.keys import PublicKey
from etl.signing.timestamps import Authorities
from etl.store import copy
from etl.verify import Answers, Sealing, against, heads, seal_lines, verify
from tests.support.authority import Authority, served
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
        Year(engine, key.sign, lambda house: house.stamp_last_seal(signing.timestamps_by(url))).live()
    kept = [msgspec.json.encode(line) for line in (*heads(engine, now()), *seal_lines(engine))]
    return Lived(engine, key.public, signing.load_authorities(authority.root), kept)


@pytest.mark.timeout(180)
def test_a_year_verifies_where_it_was_made_and_wherever_it_is_taken(
    lived: Lived, other: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    went, sealing = Answers(), Sealing()
    assert [str(each) for each in verify(lived.engine, keys=[lived.key], answers=went, sealing=sealing)] == []
    assert sealing.seals == sealing.signed > 84
    assert (sealing.stamped, sealing.unsealed_runs, went.versions - went.proven) == (12, 0, 0)
    assert lived.found(lived.engine) == []

    copy.copy(lived.engine, other)
    assert lived.found(other) == []
    House(other).serve({})  # a trail of its own, which goes on
    assert lived.found(other)[0].endswith("should be there, since a seal before it is signed, but is null")

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
    Extent(QUARTERS[3]),
    Extent(org_id="o2"),
    Extent(QUARTERS[1], QUARTERS[3], "o1"),
]
