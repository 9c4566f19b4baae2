"""The settings as the rest of Flowtrail receives them. Field names are setting names.

Durations are timedeltas, sizes are bytes. The ``read`` of a field's Meta turns what people write into its value, or
raises ValueError; the ``description`` completes "must be" in an error message.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta

from etl.config import addresses
from etl.config.secret import Secret, clean_secret, read_secret_file, read_webhook_secrets
from etl.config.slots import time_zone
from etl.config.units import (
    duration,
    duration_or_zero,
    guard_window,
    interval_or_off,
    retention_period,
    size,
    without_password,
)
from etl.errors import ConfigError, Problem


def _level(value: object) -> str:
    known = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if not isinstance(value, str) or value.upper() not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return value.upper()


def _zone(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a time zone in quotes, such as Asia/Shanghai")
    return value and time_zone(value).key


Duration = Annotated[dt.timedelta, Meta(extra={"read": duration})]
DurationOrZero = Annotated[dt.timedelta, Meta(extra={"read": duration_or_zero})]
Size = Annotated[int, Meta(extra={"read": size})]
Flag = Annotated[bool, Meta(description="true or false")]
Text = Annotated[str, Meta(description="text in quotes", pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Share = Annotated[float, Meta(ge=0, le=1, description="a share from 0 to 1")]
ApiVersion = Literal["v2.1", "v2.0"]
_SCHEDULER: Final = r"\A((tcp|tls)://[^\s/]+:[0-9]{1,5})?\Z"
AtLeastOne = Annotated[int, Meta(ge=1, le=10**9, description="a whole number, 1 or more")]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A section of the settings; ``repr`` hides passwords."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        values = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, without_password(each) if isinstance(each, str) else each) for name, each in values]


class GatewaySettings(Section, frozen=True, kw_only=True):
    """How to ask EnOS. ``url`` has no trailing slash; paths are absolute, or ""."""

    url: Annotated[str, Meta(extra={"read": addresses.gateway_url})] = ""
    allow_http: Flag = False
    access_key: Text = ""
    secret_key: Annotated[Secret | None, Meta(extra={"read": clean_secret})] = None
    secret_key_file: Text = ""
    api: Annotated[ApiVersion, Meta(description='"v2.1" or "v2.0"')] = "v2.1"
    auth: Annotated[Literal["token", "none"], Meta(description='"token" or "none"')] = "token"
    concurrency: Annotated[int, Meta(ge=1, le=1000, description="a whole number from 1 to 1000")] = 16
    requests_per_second: Annotated[float, Meta(ge=0, le=1e6, description="a number of requests, 0 for no limit")] = 0.0
    timeout: Duration = dt.timedelta(seconds=30)
    deadline: Duration = dt.timedelta(minutes=2)
    max_body: Size = 64 * 1024**2
    max_clock_skew: DurationOrZero = dt.timedelta(minutes=5)
    ca_bundle: Text = ""
    proxy: Annotated[str, Meta(extra={"read": addresses.optional_url})] = ""
    details: Annotated[Literal["off", "changed"], Meta(description='"off" or "changed"')] = "off"
    """Whether to ask Get Flow about changed workflows."""
    max_details: AtLeastOne = 1000
    details_within: Duration = dt.timedelta(minutes=1)
    """For all details of a run; what is left over is asked for with its next change."""
    keep_detail_body: Flag = True
    enos_timezone: Annotated[str, Meta(extra={"read": _zone})] = ""
    """The zone of EnOS's own times; "": unknown."""
    roster_every: Duration = dt.timedelta(hours=1)
    """How often, at most, to ask who an organisation's users are."""

    def read_secret(self) -> str:
        """The secret key: from the environment as it was at the start, or from its file as it is now.

        Raises ConfigError, in one sentence, if the file cannot be read or is empty, or if nothing was configured.
        """
        if self.secret_key is not None:
            return self.secret_key.reveal()
        try:
            if self.secret_key_file:
                return read_secret_file(Path(self.secret_key_file)).reveal()
            raise ValueError("no secret is configured: set FLOWTRAIL_GATEWAY__SECRET_KEY or secret_key_file")
        except ValueError as error:
            raise ConfigError([Problem("gateway.secret_key_file", str(error))]) from None


class DatabaseSettings(Section, frozen=True, kw_only=True):
    """Where the trail is kept. ``url`` is for the engine alone; ``repr`` hides its password."""

    url: Text = "sqlite:///flowtrail.db"
    url_file: Text = ""


class GuardSettings(Section, frozen=True, kw_only=True):
    """When removals and changes are doubted."""

    min_removed: AtLeastOne = 10
    max_removed_share: Share = 0.3
    max_emptied_targets: AtLeastOne = 5
    max_emptied_share: Share = 0.2
    max_org_removed_share: Share = 0.3
    min_changed: AtLeastOne = 10
    max_changed_share: Share = 0.5
    window: Annotated[dt.timedelta, Meta(extra={"read": guard_window})] = dt.timedelta(hours=24)


class ServiceSettings(Section, frozen=True, kw_only=True):
    """The background service."""

    listen: Annotated[str, Meta(extra={"read": addresses.listen})] = "127.0.0.1:8787"
    page: Flag = True
    hosts: Annotated[tuple[str, ...], Meta(extra={"read": addresses.host_names})] = ()
    """Further host names that requests may use, such as those of a proxy or of a cluster's service."""
    grace: Duration = dt.timedelta(seconds=25)


class NotifySettings(Section, frozen=True, kw_only=True):
    """One ``[[notify]]``: who is notified of what. Without ``orgs``, about every organisation.

    ``unacknowledged``: not of changes and events that somebody has acknowledged.
    """

    urls: Annotated[tuple[Secret, ...], Meta(extra={"read": addresses.receiver_urls})] = ()
    urls_file: Text = ""
    on: Annotated[tuple[str, ...], Meta(extra={"read": addresses.kinds})] = addresses.USUAL_KINDS
    orgs: Annotated[tuple[str, ...], Meta(extra={"read": addresses.names})] = ()
    unacknowledged: Flag = False


class WebhookSettings(Section, frozen=True, kw_only=True):
    """One ``[[webhook]]``: which program is sent what. Without ``orgs``, all organisations'. Paths are absolute."""

    name: Annotated[str, Meta(extra={"read": addresses.webhook_name})] = ""
    url: Annotated[Secret | None, Meta(extra={"read": addresses.webhook_url})] = None
    url_file: Text = ""
    secret_file: Text = ""
    on: Annotated[tuple[str, ...], Meta(extra={"read": addresses.webhook_kinds})] = addresses.WEBHOOK_KINDS
    orgs: Annotated[tuple[str, ...], Meta(extra={"read": addresses.names})] = ()
    allow_http: Flag = False
    ca_bundle: Text = ""
    proxy: Annotated[str, Meta(extra={"read": addresses.optional_url})] = ""

    def read_secrets(self) -> list[bytes]:
        """The keys to sign with, from the file as it is now. Raises ValueError, in one sentence."""
        return read_webhook_secrets(Path(self.secret_file))


class RetentionSettings(Section, frozen=True, kw_only=True):
    """How long things are kept. The trail is kept for ever; ``heads_file`` is absolute, or ""."""

    keep_runs: Annotated[dt.timedelta | None, Meta(extra={"read": retention_period})] = dt.timedelta(days=400)
    """How long issues of runs are kept; None: for ever."""
    heads_file: Text = ""


class ArchiveSettings(Section, frozen=True, kw_only=True):
    """What is kept of the answers themselves."""

    answers: Annotated[Literal["none", "changed"], Meta(description='"none" or "changed"')] = "none"
    """Those that made a version or were held."""


class VerifySettings(Section, frozen=True, kw_only=True):
    """How often the service checks its own trail; None: never."""

    every: Annotated[dt.timedelta | None, Meta(extra={"read": interval_or_off})] = dt.timedelta(days=1)
    full: Annotated[dt.timedelta | None, Meta(extra={"read": interval_or_off})] = dt.timedelta(days=7)
    """With every page of an SQLite file."""
    public_keys: Annotated[tuple[str, ...], Meta(extra={"read": addresses.names})] = ()
    """Absolute names of PEM files: every signature must be by one of these keys. (): signatures are not checked."""


class SealSettings(Section, frozen=True, kw_only=True):
    """How seals are signed and time-stamped; ``key_file`` is absolute. "": they are not."""

    key_file: Text = ""
    timestamp_url: Annotated[str, Meta(extra={"read": addresses.optional_url})] = ""
    """A time-stamp authority (RFC 3161)."""
    timestamp_every: Duration = dt.timedelta(days=1)


class RulesSettings(Section, frozen=True, kw_only=True):
    """How rules are evaluated."""

    timeout: Duration = dt.timedelta(seconds=10)
    """For each."""


class LogSettings(Section, frozen=True, kw_only=True):
    """What is logged, and how."""

    level: Annotated[str, Meta(extra={"read": _level})] = "INFO"
    format: Annotated[Literal["auto", "console", "json"], Meta(description='"auto", "console" or "json"')] = "auto"


class ScaleSettings(Section, frozen=True, kw_only=True):
    """Beyond one machine."""

    dask: Annotated[str, Meta(pattern=_SCHEDULER, description='"tcp://scheduler:8786", or "" for none')] = ""


class TopLevel(Section, frozen=True, kw_only=True):
    """The settings that stand before the first section."""

    schedules_dir: Text = "schedules"
    rules_dir: Text = "rules"
    coverage_gap: Duration = dt.timedelta(hours=36)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. ``path`` (the file), ``schedules_dir`` and ``rules_dir`` are absolute."""

    path: Path
    schedules_dir: Path
    rules_dir: Path
    coverage_gap: dt.timedelta
    gateway: GatewaySettings
    database: DatabaseSettings
    guard: GuardSettings
    service: ServiceSettings
    retention: RetentionSettings
    archive: ArchiveSettings
    seal: SealSettings
    verify: VerifySettings
    rules: RulesSettings
    log: LogSettings
    scale: ScaleSettings
    notify: tuple[NotifySettings, ...] = ()
    webhook: tuple[WebhookSettings, ...] = ()
    warnings: tuple[str, ...] = ()
    """Problems that a person should fix although Flowtrail runs; one sentence each."""


SECTIONS: Final[Mapping[str, type[Section]]] = {
    name: hint
    for name, hint in get_type_hints(Settings).items()
    if isinstance(hint, type) and issubclass(hint, Section)
}
"""The sections of the file, by name."""

_STAYS: Final = frozenset({"access_key", "secret_key", "secret_key_file", "ca_bundle", "proxy"})
"""Settings of [gateway] that are not sent: credentials, and what depends on the machine."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers of a run are sent: [guard], [archive], and [gateway] without its credentials."""

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
