"""Signatures and time stamps of seals: the only importer of cryptography and rfc3161_client.

Both come with the extra ``flowtrail[sign]``; every function here says so in one sentence where they are missing.
What is signed is ``etl.domain.seal.signed_bytes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from etl.errors import UsageError

if TYPE_CHECKING:
    from etl.signing.keys import PublicKey, SigningKey
    from etl.signing.timestamps import Authorities, TimeStamp


def generate_key(file: Path) -> PublicKey:
    """Make a key pair: ``file`` (mode 0600) and ``file``.pub. Raises SigningError where either is there already."""
    with _extra():
        from etl.signing.keys import generate
    return generate(file)


def load_signing_key(file: Path) -> SigningKey:
    """The private key in a PEM file. Raises SigningError with one sentence where it cannot or must not be used."""
    with _extra():
        from etl.signing.keys import SigningKey
    return SigningKey.load(file)


def load_public_key(file: Path) -> PublicKey:
    """The public key in a PEM file. Raises SigningError with one sentence where it cannot or must not be used."""
    with _extra():
        from etl.signing.keys import PublicKey
    return PublicKey.load(file)


def timestamps_by(url: str) -> Callable[[bytes], TimeStamp]:
    """What asks a time-stamp authority (RFC 3161) for a token over a message. Raises SigningError with one sentence."""
    with _extra():
        from etl.signing.timestamps import request
    return partial(request, url)


def load_authorities(file: Path) -> Authorities:
    """The certificates, in PEM, of the time-stamp authorities that are trusted. Raises SigningError."""
    with _extra():
        from etl.signing.timestamps import Authorities
    return Authorities.load(file)


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"Signing needs {error.name}: pip install 'flowtrail[sign]'") from error
