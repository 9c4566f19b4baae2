"""Checks the signatures of seals: none is missing after the first, and each is by a key that the caller trusts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from sqlalchemy import Row

from etl.domain.seal import signed_bytes
from etl.verify.finding import Broken, Finding, Verbatim
from etl.verify.sealing import Sealing


class PublicKey(Protocol):
    """Checks signatures by the owner of a key."""

    key_id: str

    def accepts(self, signature: str, message: bytes) -> bool:
        """Whether ``signature`` (base64) over ``message`` is by this key."""


class Signatures:
    """Follows the seals. Without public keys it only notices missing signatures."""

    def __init__(self, keys: Sequence[PublicKey], sealing: Sealing, *, signed_before: bool) -> None:
        """``signed_before``: a seal before the first one passed to ``require`` is signed."""
        self._keys = {key.key_id: key for key in keys}
        self._went = sealing
        self._signed = signed_before
        self._stranger: str | None = None
        """The key of the previous seal if it is none of them: of consecutive seals with one unknown key, only the first
        is reported."""

    def require(self, row: Row[Any], trail_id: str) -> None:
        """Raise Broken if the signature of a seal is missing, or is not by one of the keys."""
        place = f"run_seal {row.id}.signature"
        if row.signature is None or row.key_id is None:
            if self._signed or row.signature is not row.key_id:
                raise Broken(place, Verbatim("there, since a seal before it is signed"), row.signature)
            return
        self._signed = True
        self._went.signed += 1
        if not self._keys:
            return
        key = self._keys.get(row.key_id)
        stranger, self._stranger = self._stranger, None if key else row.key_id
        if key is None:
            if row.key_id == stranger:
                return
            given = " or ".join(f"'{key_id}'" for key_id in self._keys)
            wanted = Verbatim(f"{given}, the public key that was given")
            raise Broken(f"run_seal {row.id}.key_id", wanted, Verbatim(f"'{row.key_id}', from this seal on"))
        if not key.accepts(row.signature, signed_bytes(trail_id, row.id, row.seal)):
            raise Broken(place, Verbatim(f"made with the key '{row.key_id}' over '{row.seal}'"), row.signature)

    def none_at_all(self) -> Iterator[Finding]:
        """A finding if keys were given and no seal is signed."""
        if self._keys and self._went.seals and not self._signed:
            wanted = "on some seal, since a public key was given"
            yield Finding(what="run_seal.signature", expected=wanted, found=f"on none of {self._went.seals}")
