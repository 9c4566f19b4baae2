"""Signatures and time stamps of seals: made, accepted where valid, and refused in one sentence otherwise."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from etl import signing
from etl.domain.seal import signed_bytes
from etl.errors import SigningError
from etl.signing.keys import SMALL_ORDER_POINTS, PublicKey
from etl.signing.timestamps import TimeStamp, _element, sequence, with_sorted_certificates
from tests.support.authority import Authority, served

MESSAGE = signed_bytes("6f1d0a52-53c5-4a0e-9b55-0d7f6f1b3c11", 7, "ab" * 32)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "seal.pem"
    signing.generate_key(file)
    return file


# ------------------------------------------------------------------------------------------------------------ keys


def test_a_new_key_is_for_its_owner_alone_and_signs(key_file: Path) -> None:
    public_file = key_file.with_name("seal.pem.pub")
    assert key_file.stat().st_mode & 0o777 == 0o600
    key, public = signing.load_signing_key(key_file), signing.load_public_key(public_file)
    signature = key.sign(MESSAGE)
    assert signature.key_id == public.key_id
    assert public.accepts(signature.signature, MESSAGE)


def test_a_signature_is_of_one_message_and_one_key(key_file: Path, tmp_path: Path) -> None:
    other = signing.generate_key(tmp_path / "other.pem")
    public = signing.load_public_key(key_file.with_name("seal.pem.pub"))
    signature = signing.load_signing_key(key_file).sign(MESSAGE).signature
    assert not other.accepts(signature, MESSAGE)
    assert not public.accepts(signature, MESSAGE + b" ")
    flipped = base64.b64encode(bytes([base64.b64decode(signature)[0] ^ 1]) + base64.b64decode(signature)[1:])
    for wrong in (flipped.decode(), signature + "\n", signature[:-4], "", "ä", "A" * 88):
        assert not public.accepts(wrong, MESSAGE)


@pytest.mark.parametrize("there", ["seal.pem", "seal.pem.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(SigningError, match="never overwritten"):
        signing.generate_key(tmp_path / "seal.pem")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {there: "precious"}


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "seal.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SigningError, match="never overwritten"):
        signing.generate_key(tmp_path / "seal.pem")


def test_a_missing_folder_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match=r"^\S+\.pub cannot be written: No such file or directory\.$"):
        signing.generate_key(tmp_path / "nowhere" / "seal.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_or_write_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(SigningError, match="chmod 600"):
        signing.load_signing_key(key_file)


RSA = rsa.generate_private_key(65537, 2048)
PLAIN = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
RSA_PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
FOREIGN = [
    (signing.load_signing_key, "of another kind", RSA.private_bytes(*PLAIN)),
    (signing.load_signing_key, "of another kind", x25519.X25519PrivateKey.generate().private_bytes(*PLAIN)),
    (
        signing.load_signing_key, "encrypted",
        ed25519.Ed25519PrivateKey.generate().private_bytes(*PLAIN[:2], BestAvailableEncryption(b"pw")),
    ),
    (signing.load_signing_key, "not a private key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    (signing.load_signing_key, "not a private key", b"\x00\xff"),
    (signing.load_signing_key, "not a private key", RSA_PUBLIC),
    (signing.load_signing_key, "too long", b"x" * 20_000),
    (signing.load_public_key, "another kind", RSA_PUBLIC),
    (signing.load_public_key, "not a public key", b"hello"),
    (signing.load_public_key, "private key: use", RSA.private_bytes(*PLAIN)),
]  # fmt: skip


@pytest.mark.parametrize(("load", "why", "content"), FOREIGN)
def test_a_foreign_key_is_refused_in_one_sentence(
    tmp_path: Path, load: Callable[[Path], object], why: str, content: bytes
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(SigningError, match=why) as refused:
        load(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("point", sorted(SMALL_ORDER_POINTS), ids=bytes.hex)
def test_a_public_key_for_which_anybody_can_sign_is_refused(tmp_path: Path, point: bytes) -> None:
    encoded = base64.encodebytes(bytes.fromhex("302a300506032b6570032100") + point)
    (tmp_path / "key").write_bytes(b"-----BEGIN PUBLIC KEY-----\n" + encoded + b"-----END PUBLIC KEY-----\n")
    with pytest.raises(SigningError, match=r"weak key|not a public key"):
        signing.load_public_key(tmp_path / "key")


def test_a_missing_key_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match="cannot be read: No such file"):
        signing.load_signing_key(tmp_path / "none")


# ----------------------------------------------------------------------------------------------------- time stamps


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authorities") / "tsa")


@pytest.fixture(scope="module")
def stamp(authority: Authority) -> TimeStamp:
    with served(authority.answer) as url:
        return signing.timestamps_by(url)(MESSAGE)


def test_a_time_stamp_is_asked_for_and_believed(authority: Authority, stamp: TimeStamp) -> None:
    trusted = signing.load_authorities(authority.root)
    assert trusted.time_of(stamp.token, MESSAGE) == stamp.at
    assert abs(stamp.at - dt.datetime.now(dt.UTC)) < dt.timedelta(hours=1)


def test_openssl_believes_the_token_that_is_kept(authority: Authority, stamp: TimeStamp) -> None:
    assert authority.confirms(stamp.token, MESSAGE)
    assert not authority.confirms(stamp.token, MESSAGE + b" ")


def test_a_time_stamp_is_of_one_message_and_one_authority(
    authority: Authority, stamp: TimeStamp, tmp_path: Path
) -> None:
    for trusted, message in ((authority, MESSAGE + b" "), (Authority(tmp_path / "stranger"), MESSAGE)):
        with pytest.raises(SigningError, match="cannot be trusted"):
            signing.load_authorities(trusted.root).time_of(stamp.token, message)


@pytest.mark.parametrize("what", ["the imprint", "the time", "the signature"])
def test_an_altered_time_stamp_is_not_believed(authority: Authority, stamp: TimeStamp, what: str) -> None:
    altered = bytearray(stamp.token)
    imprint = altered.index(hashlib.sha256(MESSAGE).digest())
    place = {"the imprint": imprint, "the time": altered.index(b"Z", imprint + 32) - 1, "the signature": -1}[what]
    altered[place] ^= 1
    with pytest.raises(SigningError, match="cannot be trusted"):
        signing.load_authorities(authority.root).time_of(bytes(altered), MESSAGE)


def test_an_authority_with_a_weak_key_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tsa", key=("-newkey", "rsa:1024"))
    with pytest.raises(SigningError, match="weak"):
        signing.load_authorities(authority.root).time_of(asked_of(authority), MESSAGE)


def asked_of(authority: Authority) -> bytes:
    with served(authority.answer) as url:
        return signing.timestamps_by(url)(MESSAGE).token


def test_the_answer_to_another_request_is_refused(authority: Authority) -> None:
    replayed: list[bytes] = []

    def first_answer_again(query: bytes) -> bytes:
        replayed.append(authority.answer(query))
        return replayed[0]

    with served(first_answer_again) as url:
        signing.timestamps_by(url)(MESSAGE)
        with pytest.raises(SigningError, match="a different request"):
            signing.timestamps_by(url)(MESSAGE)


REJECTION = bytes.fromhex("30053003020102")
WRONG = {
    "refused: status 2": REJECTION,
    "not an RFC 3161 time stamp": b"<html>",
    "not an RFC 3161 time stam": bytes.fromhex("3080") + bytes(40),
    "more than a time stamp": bytes(70_000),
}


@pytest.mark.parametrize("why", WRONG)
def test_an_invalid_time_stamp_is_refused_in_one_sentence(why: str) -> None:
    with served(lambda _: WRONG[why]) as url, pytest.raises(SigningError, match=why) as refused:
        signing.timestamps_by(url)(MESSAGE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("status", [302, 404, 503])
def test_another_status_is_an_error_and_no_redirect_is_followed(status: int) -> None:
    with served(lambda _: b"", status) as url, pytest.raises(SigningError, match=f"HTTP {status}"):
        signing.timestamps_by(url)(MESSAGE)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://", "nonsense", "ftp://127.0.0.1/"])
def test_an_unreachable_authority_is_reported_in_one_sentence(url: str) -> None:
    with pytest.raises(SigningError, match="cannot be reached"):
        signing.timestamps_by(url)(MESSAGE)


def test_a_file_without_certificates_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("x")
    with pytest.raises(SigningError, match="no certificates"):
        signing.load_authorities(tmp_path / "none")
    with pytest.raises(SigningError, match="cannot be read"):
        signing.load_authorities(tmp_path / "missing")


def test_certificates_in_the_order_of_the_chain_are_put_into_that_of_a_set(authority: Authority) -> None:
    """OpenSSL writes the signer first; the library refuses what is not sorted."""
    elements = [sequence(b"b" * 200), sequence(b"a")]
    signed_data = sequence(_element(0xA0, b"".join(elements)))
    response = sequence(sequence(b"") + sequence(b"\x06\x00" + _element(0xA0, signed_data)))
    ordered = with_sorted_certificates(response)
    assert ordered == response.replace(b"".join(elements), b"".join(sorted(elements)))
    assert with_sorted_certificates(ordered) == ordered


@pytest.mark.parametrize("cut", [b"", b"\x30", b"\x30\x05\x01", b"\x30\x80\x00\x00", b"\x3f\x01\x00"])
def test_invalid_der_is_a_value_error(cut: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        with_sorted_certificates(cut)


def test_the_key_id_is_the_digest_of_the_raw_public_key() -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    assert PublicKey(key).key_id == hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()
