"""RFC 3161 time stamps: an independent authority confirms that a seal existed at a certain time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import urllib3
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509 import Certificate, load_der_x509_certificate, load_pem_x509_certificates
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from etl.errors import NoTimestamp, SigningError
from etl.signing import der
from etl.system.disk import MIB, read_regular

TIMEOUT_SECONDS: Final = 10.0
"""To connect, and for each read."""
_LONGEST_ANSWER: Final = 65_536
_SHORTEST_RSA_BITS: Final = 2048
_GRANTED: Final = 0
_CONTENT_TYPE: Final = "application/timestamp-query"
_STATUS_GRANTED: Final = bytes.fromhex("3003020100")
"""PKIStatusInfo { status granted }, in DER."""


class TimeStamp(NamedTuple):
    """The token as the authority gave it (a CMS ContentInfo in DER), and the time that it names."""

    token: bytes
    at: dt.datetime


class Authorities:
    """The certificates of those whose time stamps are believed."""

    def __init__(self, certificates: Sequence[Certificate]) -> None:
        self._certificates = list(dict.fromkeys(certificates))

    @classmethod
    def load(cls, file: Path) -> Authorities:
        """Read the root certificates (and those between, if any) from a PEM file. Raises SigningError."""
        try:
            return cls(load_pem_x509_certificates(read_regular(file, MIB)))
        except OSError as error:
            raise SigningError(f"{file} cannot be read: {error.strerror}.") from error
        except ValueError:
            raise SigningError(f"{file} holds no certificates in PEM: ask the authority for its root.") from None

    def time_of(self, token: bytes, message: bytes) -> dt.datetime:
        """When ``message`` was stamped. Raises SigningError if the token does not cover it or is not from these
        authorities.

        A certificate must have been valid at that time; that it has expired since does not matter.
        """
        response = _decoded(token)
        _refuse_weak(response)
        builder = VerifierBuilder(roots=self._certificates)
        try:
            builder.build().verify_message(response, message)
        except (VerificationError, ValueError) as error:
            raise SigningError(f"The time stamp cannot be trusted: {error}.") from error
        return response.tst_info.gen_time


def request(url: str, message: bytes) -> TimeStamp:
    """Ask the authority at ``url`` once. The answer is compared with the request; ``Authorities`` can tell later
    whether the authority is to be trusted. Raises NoTimestamp."""
    asked = TimestampRequestBuilder().data(message).hash_algorithm(HashAlgorithm.SHA256).build()
    answer = _post(url, asked.as_bytes())
    try:
        response = _response(answer)
    except SigningError as error:
        raise NoTimestamp(str(error)) from error
    if response.status != _GRANTED:
        reason = "; ".join(response.status_string) or f"status {response.status}"
        raise NoTimestamp(f"The time-stamp authority refused: {reason}.")
    info = response.tst_info
    imprint = asked.message_imprint
    there = info.message_imprint
    if info.nonce != asked.nonce or (there.hash_algorithm, there.message) != (imprint.hash_algorithm, imprint.message):
        raise NoTimestamp("The time-stamp authority answered a different request.")
    return TimeStamp(response.time_stamp_token(), info.gen_time)


def _post(url: str, body: bytes) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise NoTimestamp(
            "The time-stamp authority cannot be reached: its address must begin with http:// or https://."
        )
    with urllib3.PoolManager(retries=False, timeout=TIMEOUT_SECONDS) as pool:
        try:
            answer = pool.request(
                "POST", url, body=body, headers={"Content-Type": _CONTENT_TYPE}, redirect=False, preload_content=False
            )
            with answer:
                content = answer.read(_LONGEST_ANSWER + 1)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise NoTimestamp(f"The time-stamp authority cannot be reached ({type(error).__name__}).") from error
    if answer.status != 200:
        raise NoTimestamp(f"The time-stamp authority answered HTTP {answer.status}.")
    if len(content) > _LONGEST_ANSWER:
        raise NoTimestamp("The time-stamp authority answered with more than a time stamp can be.")
    return content


def _decoded(token: bytes) -> TimeStampResponse:
    """The library reads whole responses only."""
    return _response(der.sequence(_STATUS_GRANTED + token))


def _response(encoded: bytes) -> TimeStampResponse:
    try:
        return decode_timestamp_response(der.with_sorted_certificates(encoded))
    except (ValueError, IndexError) as error:
        raise SigningError("The time-stamp authority's answer is not an RFC 3161 time stamp.") from error


def _refuse_weak(response: TimeStampResponse) -> None:
    for encoded in response.signed_data.certificates:
        key = load_der_x509_certificate(encoded).public_key()
        if isinstance(key, RSAPublicKey) and key.key_size < _SHORTEST_RSA_BITS:
            raise SigningError(f"The time stamp is signed with a weak key (RSA, {key.key_size} bits).")
