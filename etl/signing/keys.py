"""Ed25519 keys (RFC 8032) in PEM files, and what they sign."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from etl.config.secret import openness
from etl.errors import SigningError
from etl.system.disk import open_regular

_LONGEST_FILE: Final = 16_384
SMALL_ORDER_POINTS: Final = frozenset(
    bytes.fromhex(point)
    for point in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    )
)
"""Every encoding of the points whose order divides eight. As a public key each accepts signatures that nobody made."""


class Signature(NamedTuple):
    """A signature in base64, and which key made it."""

    signature: str
    key_id: str


class PublicKey:
    """The half of a key that anybody may have; it says whether a signature is the other half's."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = hashlib.sha256(raw).hexdigest()
        """SHA-256 (hex) of the raw public key."""
        self._key = key

    @classmethod
    def load(cls, file: Path) -> PublicKey:
        """Read ``file``. Raises SigningError where it holds no Ed25519 public key, or one that proves nothing."""
        text = _text_of(file)
        if b"PRIVATE KEY" in text:
            raise SigningError(f"{file} holds a private key: use the file next to it whose name ends in .pub.")
        try:
            key = load_pem_public_key(text)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SigningError(f"{file} is not a public key in PEM, as `flowtrail seal keygen` writes it.") from None
        if not isinstance(key, Ed25519PublicKey):
            raise SigningError(f"{file} holds a key of another kind: seals are signed with Ed25519.")
        if key.public_bytes(Encoding.Raw, PublicFormat.Raw) in SMALL_ORDER_POINTS:
            raise SigningError(f"{file} holds a weak key, for which anybody can make signatures: refuse it.")
        return cls(key)

    def accepts(self, signature: str, message: bytes) -> bool:
        """Whether ``signature`` (base64) over ``message`` is that of the key's owner."""
        try:
            raw = base64.b64decode(signature, validate=True)
            self._key.verify(raw, message)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return base64.b64encode(raw).decode() == signature  # other texts give the same bytes


class SigningKey:
    """The half of a key that signs. It never shows itself."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def load(cls, file: Path) -> SigningKey:
        """Read ``file``. Raises SigningError where others may read it, or it holds no plain Ed25519 key."""
        text = _text_of(file)
        exposed = openness(file)
        if exposed is not None:
            raise SigningError(f"The signing key {exposed}.")
        try:
            key = load_pem_private_key(text, password=None)
        except TypeError:
            raise SigningError(
                f"{file} is encrypted, and nobody is there to type its password: store it without one."
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise SigningError(f"{file} is not a private key in PEM: `flowtrail seal keygen FILE` makes one.") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SigningError(f"{file} holds a key of another kind: seals are signed with Ed25519.")
        return cls(key)

    def sign(self, message: bytes) -> Signature:
        """Sign ``message``."""
        return Signature(base64.b64encode(self._key.sign(message)).decode("ascii"), self.public.key_id)


def generate(file: Path) -> PublicKey:
    """Make a key pair in ``file`` (0600) and ``file``.pub (0644), both or neither, and never over what is there."""
    public_file = file.with_name(file.name + ".pub")
    for each in (file, public_file):
        if os.path.lexists(each):
            raise SigningError(f"{each} already exists, and a key is never overwritten: choose another name.")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_new(public_file, public, 0o644)
    try:
        _write_new(file, private, 0o600)
    except SigningError:
        public_file.unlink()
        raise
    return PublicKey(key.public_key())


def _write_new(file: Path, content: bytes, mode: int) -> None:
    """On the disk before it returns: what a key signed is worth nothing without the key."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise SigningError(f"{file} cannot be written: {error.strerror}.") from error
    try:
        with open(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        file.unlink(missing_ok=True)
        raise SigningError(f"{file} cannot be written: {error.strerror}.") from error


def _text_of(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            text = opened.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise SigningError(f"{file} cannot be read: {error.strerror}.") from error
    if len(text) > _LONGEST_FILE:
        raise SigningError(f"{file} is too long for a key.")
    return text
