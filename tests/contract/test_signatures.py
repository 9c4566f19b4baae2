"""Seals are signed where a key is configured, and ``verify`` says what is wrong with a signature, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from etl import signing
from etl.errors import SigningError
from etl.signing.keys import PublicKey, SigningKey
from etl.store import Store
from etl.verify import verify
from tests.support.intruder import tamper
from tests.support.trails import ANN, House, findings


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    signing.generate_key(tmp_path / "seal.pem")
    return signing.load_signing_key(tmp_path / "seal.pem")


@pytest.fixture
def house(engine: Engine, key: SigningKey) -> House:
    return House(engine, key.sign)


def found(engine: Engine, *keys: PublicKey, since: int = 0) -> list[str]:
    return [str(finding) for finding in verify(engine, keys=keys, since=since)]


def test_of_a_stretch_of_seals_with_a_strange_key_the_first_is_named(
    house: House, key: SigningKey, tmp_path: Path
) -> None:
    other = signing.generate_key(tmp_path / "other.pem")
    mine, others = key.sign, signing.load_signing_key(tmp_path / "other.pem").sign
    for house.sign in (mine, mine, others, mine, mine):
        house.serve({"plants": [ANN]})
    lines = found(house.engine, other)
    assert [line.split(":")[0] for line in lines] == ["run 1 (seal 1)", "run 4 (seal 4)"]
    wanted = f"run_seal 1.key_id should be '{other.key_id}', the public key that was given"
    assert f"{wanted}, but is '{key.public.key_id}', from this seal on" in lines[0]


def test_a_key_may_be_replaced_and_then_both_are_needed(house: House, key: SigningKey, tmp_path: Path) -> None:
    house.serve({"plants": [ANN]})
    signing.generate_key(tmp_path / "next.pem")
    house.sign = signing.load_signing_key(tmp_path / "next.pem").sign
    house.serve({"plants": [ANN]})
    following = signing.load_public_key(tmp_path / "next.pem.pub")
    assert found(house.engine, key.public, following) == []
    assert [line[:18] for line in found(house.engine, following)] == ["run 1 (seal 1): ru"]
    assert found(house.engine, following, since=1) == []


def test_a_signature_over_another_seal_is_found(house: House, key: SigningKey) -> None:
    house.serve({"plants": [ANN]})
    house.serve({"plants": [ANN]})
    first = "SELECT signature FROM run_seal WHERE id = 1"
    tamper(house.engine, f"UPDATE run_seal SET signature = ({first}) WHERE id = 2")
    [line] = found(house.engine, key.public)
    assert line.startswith("run 2 (seal 2): run_seal 2.signature should be made with the key")


def test_an_unsigned_seal_after_a_signed_one_is_found_without_any_key(house: House) -> None:
    house.serve({"plants": [ANN]})
    house.sign = None
    house.serve({"plants": [ANN]})
    sentence = "run_seal 2.signature should be there, since a seal before it is signed, but is null"
    assert findings(house.engine) == [f"run 2 (seal 2): {sentence}"]
    assert found(house.engine, since=1) == findings(house.engine)


def test_a_public_key_for_a_trail_without_signatures_is_a_finding(engine: Engine, key: SigningKey) -> None:
    House(engine).serve({"plants": [ANN]})
    assert found(engine, key.public) == [
        "run_seal.signature should be on some seal, since a public key was given, but is on none of 1"
    ]


def test_a_process_without_the_key_does_not_begin_what_it_could_not_sign(house: House) -> None:
    Store(house.engine).require_signing()
    house.serve({"plants": [ANN]})
    with pytest.raises(SigningError, match=r"^The seals of this database are signed \(key \w{16}\).* key_file"):
        Store(house.engine).require_signing()
    house.store.require_signing()
