"""RFC 3161 time stamps: an independent authority confirms that a seal existed at a certain time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
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
    return _response(sequence(_STATUS_GRANTED + token))


def _response(encoded: bytes) -> TimeStampResponse:
    try:
        return decode_timestamp_response(with_sorted_certificates(encoded))
    except (ValueError, IndexError) as error:
        raise SigningError("The time-stamp authority's answer is not an RFC 3161 time stamp.") from error


def _refuse_weak(response: TimeStampResponse) -> None:
    for encoded in response.signed_data.certificates:
        key = load_der_x509_certificate(encoded).public_key()
        if isinstance(key, RSAPublicKey) and key.key_size < _SHORTEST_RSA_BITS:
            raise SigningError(f"The time stamp is signed with a weak key (RSA, {key.key_size} bits).")


# As much of DER (ITU-T X.690) as it takes to put the certificates of a time stamp in order: OpenSSL, and authorities
# that use it, write them in the order of the chain. DER sorts a set, and rfc3161_client refuses one that is not sorted.
# No signature covers the order.

_SEQUENCE: Final = 0x30
_CERTIFICATES: Final = 0xA0


def sequence(content: bytes) -> bytes:
    """``content`` as a SEQUENCE."""
    return _element(_SEQUENCE, content)


def with_sorted_certificates(response: bytes) -> bytes:
    """A TimeStampResp with the certificates of its token sorted. Raises ValueError if it is not DER."""
    status, *token = _elements(_content(response))
    if not token:
        return response
    content_type, explicit = _elements(_content(token[0]))
    (signed_data,) = _elements(_content(explicit))
    fields = [_sorted(field) if field[0] == _CERTIFICATES else field for field in _elements(_content(signed_data))]
    rebuilt = _element(explicit[0], sequence(b"".join(fields)))
    return sequence(status + sequence(content_type + rebuilt))


def _sorted(certificates: bytes) -> bytes:
    return _element(_CERTIFICATES, b"".join(sorted(_elements(_content(certificates)))))


def _elements(content: bytes) -> Iterator[bytes]:
    while content:
        _, end = _bounds(content)
        yield content[:end]
        content = content[end:]


def _content(element: bytes) -> bytes:
    start, end = _bounds(element)
    if end != len(element):
        raise ValueError("bytes after the end")
    return element[start:end]


def _bounds(data: bytes) -> tuple[int, int]:
    """Where the content of the first element begins and ends."""
    if len(data) < 2 or data[0] & 0x1F == 0x1F or data[1] == 0x80:
        raise ValueError("no DER")
    size = data[1] & 0x7F if data[1] & 0x80 else 0
    start = 2 + size
    length = int.from_bytes(data[2:start], "big") if size else data[1]
    if start + length > len(data):
        raise ValueError("cut short")
    return start, start + length


def _element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content
