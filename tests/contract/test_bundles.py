"""A bundle of a real trail, written from either database, passes the stand-alone checker; one of a trail that somebody
has altered does not, and the checker names the place."""

from __future__ import annotations

import datetime as dt
import io
import json
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from sqlalchemy import Engine

from etl import signing
from etl.audit import Bundle, Extent, check, write_bundle
from etl.domain.model import Target
from etl.errors import DatabaseError, FlowtrailError, Refused
from etl.report.coverage import coverage
from etl.signing.keys import PublicKey
from etl.signing.timestamps import Authorities
from etl.store import NewRun, copy
from etl.verify import Answers, Sealing, against, heads, seal_lines, verify
from tests.support.authority import Authority, served
from tests.support.builders import numbered
from tests.support.intruder import tamper
from tests.support.questions import now
from tests.support.tamperings import IN_DATABASE
from tests.support.trails import ANN, BEN, CAT, House, Kept, change, contradictions, findings, live
from tests.support.years import BEGIN, Year

EVE = Target("o2", "eve")
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def house(engine: Engine) -> House:
    house = House(engine)
    house.upstream.lists[EVE] = numbered(1, 4)
    return house


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Checks a bundle: the exit code, and what was printed."""

    def checked(bundle: bytes, *options: object) -> tuple[int, str]:
        (tmp_path / "bundle.zip").write_bytes(bundle)
        code = check.main([str(tmp_path / "bundle.zip"), *map(str, options)])
        return code, capsys.readouterr().out

    return checked


def written(house: House, **extent: object) -> tuple[bytes, Bundle]:
    file = io.BytesIO()
    done = write_bundle(house.engine, file, Extent(**extent), now())  # type: ignore[arg-type]
    return file.getvalue(), done


def lines(bundle: bytes, name: str) -> list[dict[str, object]]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return [json.loads(line) for line in archive.read(f"{name}.jsonl").splitlines()]


def test_the_bundle_of_a_whole_trail_passes(house: House, said: Said, tmp_path: Path) -> None:
    live(house)
    bundle, done = written(house)
    kept = tmp_path / "kept.jsonl"
    kept.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in seal_lines(house.engine)))
    code, printed = said(bundle, "--kept", kept)
    assert code == 0, printed
    assert f"{done.seals} seals, {done.targets} targets, {done.change_sets} change sets" in printed
    assert done.runs == done.seals
    assert done.change_sets == len(house.rows("SELECT id FROM change_set"))


def test_the_bundle_of_one_organisation_reveals_nothing_of_others(house: House, said: Said) -> None:
    house.serve({"plants": [ANN, EVE], "wind": [BEN]})
    house.serve({"wind": [BEN]})
    house.upstream.lists[EVE] = numbered(1, 5)
    house.upstream.lists[ANN] = numbered(1, 8)
    house.serve({"plants": [ANN, EVE]})
    house.serve({"other": [EVE]})
    house.run([EVE])
    bundle, done = written(house, org_id="o1")
    code, printed = said(bundle)
    assert code == 0, printed
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        told = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".jsonl"))
    assert (b'"ann"' in told.replace(b"u000", b"ann"), b'"o2"' in told, b'"eve"' in told) == (True, False, False)
    opened = {row["id"]: row["opened"] for row in lines(bundle, "runs")}
    assert list(opened.values()) == ["hashes", "whole", "hashes", "no", "no"]
    assert (done.targets, done.change_sets) == (2, 3)


def test_a_run_that_heard_nobody_is_no_observation_even_after_its_issues_were_pruned(house: House, said: Said) -> None:
    """Its sums are sealed: two failures cannot be turned into a span that never ended."""
    house.serve({"plants": [ANN]})
    house.upstream.says = lambda target, n: Refused("no", code="62101")
    house.serve({"plants": [ANN]})
    house.serve({"plants": [ANN]})
    house.upstream.says = lambda target, n: house.upstream.lists[target]
    house.serve({"plants": [ANN]})
    change(house.engine, "UPDATE sync_run SET notified_at = started_at")
    assert (
        house.store.prune_runs(now() + dt.timedelta(days=1), now() + dt.timedelta(days=30), has_receivers=False).issues
        == 2
    )
    assert (said(written(house)[0])[0], findings(house.engine)) == (0, [])
    [(asked_at, last_at)] = house.rows("SELECT last_asked_at, last_at FROM observation WHERE id = 2")
    merged = "UPDATE observation SET observations = 4, last_asked_at = :asked_at, last_at = :last_at WHERE id = 1"
    change(house.engine, merged, asked_at=asked_at, last_at=last_at)
    change(house.engine, "UPDATE target SET observation_id = 1")
    change(house.engine, "DELETE FROM observation WHERE id = 2")
    assert [each for each in findings(house.engine) if "observations should be 2" in each]
    code, printed = said(written(house)[0])
    assert (code, "should be 2, by the sealed runs that asked in that time, but is 4" in printed) == (1, True), printed


def test_the_bundle_ends_before_a_run_under_way_began(house: House, said: Said) -> None:
    house.serve({"plants": [ANN]})
    begun = now()
    run_id = house.store.begin_run(
        NewRun(origin="command", host="h", pid=1, targets=1, lists={"wind": [BEN]}), begun, []
    )
    assert run_id is not None
    for seals in (1, 2):
        bundle, done = written(house)
        code, printed = said(bundle)
        assert (code, done.extent.until, done.runs, done.seals) == (0, begun, 1, seals), printed
        assert f" 0 earlier and {seals - 1} later ones are not part of it." in printed
        house.serve({"wind": [BEN, CAT]})
    house.store.finish_run(run_id, "succeeded", {}, now())
    assert written(house)[1].extent.until is None


def test_signatures_time_stamps_and_the_checker_are_in_it(engine: Engine, said: Said, tmp_path: Path) -> None:
    signing.generate_key(tmp_path / "seal.pem")
    house = House(engine, signing.load_signing_key(tmp_path / "seal.pem").sign)
    house.serve({"plants": [ANN]})
    with served(Authority(tmp_path / "tsa").answer) as url:
        house.stamp_last_seal(signing.timestamps_by(url))
    bundle, _ = written(house)
    code, printed = said(bundle, "--public-key", tmp_path / "seal.pem.pub")
    assert (code, "Proven: time stamps: 1, each of its seal." in printed) == (0, True)
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        assert archive.read("check.py") == Path(check.__file__).read_bytes()


# ------------------------------------------------------------------------------- what both must find, in the database


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("what", IN_DATABASE)
def test_what_is_altered_in_the_database_is_found_by_whoever_can(
    lived: Kept, engine: Engine, said: Said, what: str
) -> None:
    """By verify, by the checker, where a bundle has it, by kept heads, and by the checker of stories."""
    done = IN_DATABASE[what]
    tamper(engine, done.statements)
    found = [str(finding) for finding in verify(engine, answers=Answers())]
    assert any(done.verify in line for line in found) if done.verify else not found, found
    try:
        code, printed = said(written(House(engine))[0], "--kept", lived.seals)
    except FlowtrailError as error:
        code, printed = 1, str(error)
    assert (code, done.checker in printed) == (bool(done.checker), True), printed
    assert " ".join(sorted({finding.what for finding in against(engine, lived.heads)})) == done.kept
    assert not done.story or done.story in "\n".join(contradictions(engine))


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("what", ["a scope that is no JSON", "a hold that is no JSON"])
def test_json_that_no_run_wrote_is_an_error_in_one_sentence(lived: Kept, engine: Engine, what: str) -> None:
    tamper(engine, IN_DATABASE[what].statements)
    with pytest.raises(DatabaseError, match="run `flowtrail verify`"):
        coverage(engine, now())


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
def year(engine: Engine, tmp_path: Path) -> Lived:
    """The seals are signed, one a month is stamped, and every answer that changed something is kept."""
    signing.generate_key(tmp_path / "seal.pem")
    key, authority = signing.load_signing_key(tmp_path / "seal.pem"), Authority(tmp_path / "tsa")
    with served(authority.answer) as url:
        Year(engine, key.sign, lambda house: house.stamp_last_seal(signing.timestamps_by(url))).live()
    kept = [msgspec.json.encode(line) for line in (*heads(engine, now()), *seal_lines(engine))]
    return Lived(engine, key.public, signing.load_authorities(authority.root), kept)


@pytest.mark.timeout(180)
def test_a_year_verifies_where_it_was_made_and_wherever_it_is_taken(
    year: Lived, other: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    went, sealing = Answers(), Sealing()
    assert [str(each) for each in verify(year.engine, keys=[year.key], answers=went, sealing=sealing)] == []
    assert sealing.seals == sealing.signed > 84
    assert (sealing.stamped, sealing.unsealed_runs, went.versions - went.proven) == (12, 0, 0)
    assert year.found(year.engine) == []

    copy.copy(year.engine, other)
    assert year.found(other) == []
    House(other).serve({})  # a trail of its own, which goes on
    assert year.found(other)[0].endswith("should be there, since a seal before it is signed, but is null")

    kept = tmp_path / "kept.jsonl"
    kept.write_bytes(b"".join(line + b"\n" for line in year.kept if b"trail_id" in line))
    for extent in EXTENTS:
        file = io.BytesIO()
        done = write_bundle(year.engine, file, extent, now())
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
