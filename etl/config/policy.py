"""The settings that are sent to other processes that work for a run; no credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from etl.config.settings import ArchiveSettings, GuardSettings, Settings

_STAYS: Final = frozenset({"access_key", "secret_key", "secret_key_file", "ca_bundle", "proxy"})
"""Settings of [gateway] that are not sent: credentials, and what depends on the machine."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """[guard], [archive], and [gateway] without its credentials."""

    guard: GuardSettings
    archive: ArchiveSettings
    gateway: Mapping[str, Any]


def policy_of(settings: Settings) -> Policy:
    """The part of ``settings`` that goes to the workers."""
    gateway = msgspec.structs.asdict(settings.gateway)
    travels = {name: value for name, value in gateway.items() if name not in _STAYS}
    return Policy(guard=settings.guard, archive=settings.archive, gateway=travels)


def with_policy(settings: Settings, policy: Policy) -> Settings:
    """A worker's own ``settings``, with those of the run's policy in their place."""
    gateway = msgspec.structs.replace(settings.gateway, **policy.gateway)
    return msgspec.structs.replace(settings, guard=policy.guard, archive=policy.archive, gateway=gateway)
