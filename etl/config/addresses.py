"""The addresses that settings accept: of the gateway, a proxy, a time-stamp authority, the page, Dask, a database.

Also of receivers and pings, which contain keys, so no message repeats one; and what receivers are notified of.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from etl.config.secret import Secret, read_secret_file, read_secret_lines
from etl.config.units import nearest, shown
from etl.domain.kinds import DELTA_KINDS, EVENT_KINDS, ORGANISATION_KINDS, TARGET_ISSUE_KINDS

USUAL_KINDS: Final = ("cycle_changed", "removed", "held", "failed", "overdue", "rule_broken", "rule_mended")
KINDS: Final = tuple(dict.fromkeys((*USUAL_KINDS, *DELTA_KINDS, *TARGET_ISSUE_KINDS, *ORGANISATION_KINDS)))
"""Every kind of notification, first those that receivers get by default."""
WEBHOOK_KINDS: Final = (*EVENT_KINDS, "condition", "finding")
"""What a webhook can be sent: events of organisations, and what else begins and ends."""
_LISTEN: Final = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_RECEIVER: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x20\x7f]+")

# Services that give credentials to anybody who asks from inside a cloud machine.
_METADATA_HOSTS: Final = frozenset(
    {"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)
_METADATA_NETWORKS: Final = tuple(
    map(
        ipaddress.ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32")
    )
)
_ODD: Final = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ud800-\udfff]")


def gateway_url(value: object) -> str:
    """The gateway's address without a trailing slash; ValueError says what is wrong with it."""
    text, parts = _web_address(value)
    if parts.username is not None or "@" in parts.netloc:
        raise ValueError("must not contain a user name or password: put the keys in access_key and secret_key_file")
    if "?" in text or "#" in text:
        raise ValueError("must end with the path: no query (?...) and no fragment (#...)")
    return text.rstrip("/")


def ping_url(value: object) -> Secret:
    """Where a schedule's runs are reported, without a trailing slash; the path is as secret as a password."""
    try:
        text, _ = _web_address(value)
        if "#" not in text:
            return Secret(text.rstrip("/"))
    except ValueError:
        pass
    raise ValueError('must be an address such as "https://hc-ping.com/..."')


def webhook_url(value: object) -> Secret:
    """Where a webhook is sent; path, query and password are secrets."""
    try:
        text, parts = _web_address(value)
        if "#" not in text and f"{parts.path}{parts.query}".isascii():
            return Secret(text)
    except ValueError:
        pass
    raise ValueError('must be an address such as "https://tickets.example.com/events"')


def webhook_url_file(path: Path) -> Secret:
    """The address in a file; ValueError names the file."""
    try:
        return webhook_url(read_secret_file(path).reveal())
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path} {error}") from None


def webhook_name(value: object) -> str:
    """A name for a webhook."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value):
        raise ValueError(f"must be up to 64 letters, digits, - and _, not {shown(value)}")
    return value


def optional_url(value: object) -> str:
    """The address of a proxy or a time-stamp authority, or ""."""
    return "" if value == "" else _web_address(value)[0]


def is_loopback(url: str) -> bool:
    """Whether ``url`` stays on this machine."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    address = ip_of(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def listen(value: object) -> str:
    """ "host:port", or "" for none."""
    if value == "":
        return ""
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[2]) > 65_535:
        raise ValueError(f'must be "host:port" such as "127.0.0.1:8787", or "" for none, not {shown(value)}')
    return match[0]


def host_names(value: object) -> tuple[str, ...]:
    """Host names without a port: a list, or text separated by commas."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'must be a list of names such as ["flowtrail.example.com"], not {shown(value)}')
    found = tuple(name.strip().lower().rstrip(".") for name in names if name.strip())
    for name in found:
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
            raise ValueError(f"must be names without scheme, port and path, not {shown(name)}")
    return found


def receiver_urls(value: object) -> tuple[Secret, ...]:
    """Addresses of receivers: a list, or text separated by white space."""
    found = tuple(dict.fromkeys(names(value)))
    if not all(map(_RECEIVER.fullmatch, found)):
        raise ValueError('must be a list of addresses such as "mailto://..." or "slack://...", and one of them is not')
    return tuple(map(Secret, found))


def receiver_urls_file(path: Path) -> tuple[Secret, ...]:
    """Addresses in a file, one per line; lines that begin with ``#`` are comments."""
    lines = read_secret_lines(path)
    if not lines:
        raise ValueError(f"{path} is empty: write one address per line")
    try:
        return receiver_urls(lines)
    except ValueError:
        raise ValueError(
            f"{path} must have one address per line, such as mailto://..., and one line is not an address"
        ) from None


def kinds(value: object, known: Sequence[str] = KINDS) -> tuple[str, ...]:
    """The kinds that a receiver is notified of."""
    chosen = tuple(dict.fromkeys(names(value)))
    for name in chosen:
        if name not in known:
            raise ValueError(f"there is no kind {shown(name)}: did you mean {nearest(name, known)}?")
    if not chosen:
        raise ValueError(f"must name at least one of {', '.join(known)}")
    return chosen


def webhook_kinds(value: object) -> tuple[str, ...]:
    """The kinds that a webhook is sent."""
    return kinds(value, WEBHOOK_KINDS)


def names(value: object) -> tuple[str, ...]:
    """A list of texts that are not empty, or one text separated by white space."""
    parts: Sequence[object] = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    if not isinstance(value, str | list) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError('must be a list of strings, such as ["one", "another"]')
    return tuple(str(part).strip() for part in parts)


def database_url(value: object, folder: Path) -> str:
    """The URL of a SQLite file (relative: to ``folder``) or of PostgreSQL through psycopg; ValueError else."""
    match = re.match(r"([A-Za-z][A-Za-z0-9]*)(?:\+([A-Za-z0-9_]*))?://", value) if isinstance(value, str) else None
    if match is None or not isinstance(value, str):
        raise ValueError('must be "sqlite:///flowtrail.db" or "postgresql+psycopg://user@host/name"')
    kind, driver, rest = match[1].lower(), (match[2] or "").lower(), value[match.end() :]
    if kind == "sqlite" and driver in ("", "pysqlite"):
        return "sqlite:///" + _sqlite_file(rest, folder)
    if kind in ("postgresql", "postgres"):
        if driver in ("", "psycopg"):
            return "postgresql+psycopg://" + rest
        raise ValueError(f'PostgreSQL is reached through psycopg, not {driver}: write "postgresql+psycopg://..."')
    raise ValueError(f"{match[0][:-3]} is not supported: Flowtrail keeps its trail in SQLite or PostgreSQL")


def _sqlite_file(rest: str, folder: Path) -> str:
    path, mark, query = rest.removeprefix("/").partition("?")
    if not rest.startswith("/"):
        path = ""
    if path in ("", ":memory:") or path.startswith("file:"):
        raise ValueError('needs a file, such as "sqlite:///flowtrail.db": one in memory would forget the trail')
    absolute = str(folder / path)
    if "?" in absolute:
        raise ValueError("a SQLite file cannot be in a folder with a question mark in its name")
    return absolute + mark + query


def _web_address(value: object) -> tuple[str, SplitResult]:
    if not isinstance(value, str) or not re.match(r"(?i)https?://[^/?#]", value) or _ODD.search(value):
        raise ValueError(f'must be an address such as "https://apim.example.com", not {shown(value)}')
    try:
        parts = urlsplit(value)
        port_is_real = parts.port != 0
        host = _ascii_host(parts.hostname or "")
    except ValueError:
        raise ValueError(f"has an invalid host or port: {shown(value)}") from None
    if not host or not port_is_real or parts.netloc.endswith(":"):
        raise ValueError(f"has an invalid host or port: {shown(value)}")
    address = ip_of(host)
    inner = getattr(address, "ipv4_mapped", None) or address
    if host in _METADATA_HOSTS or (inner is not None and any(inner in network for network in _METADATA_NETWORKS)):
        raise ValueError(f"{host} is a metadata or link-local address, never a gateway")
    return value, parts


def _ascii_host(host: str) -> str:
    """The host as the resolver gets it, so that no other spelling can hide an address."""
    if ":" in host:
        return str(ipaddress.ip_address(host))
    ascii_host = host.encode("idna").decode("ascii").lower().rstrip(".")
    if re.search(r"[^a-z0-9._-]", ascii_host) or ".." in ascii_host:
        raise ValueError(host)
    if ip_of(ascii_host) is None:
        with suppress(OSError):
            socket.inet_aton(ascii_host)  # also takes 2852039166, 0xa9fea9fe and 0251.0376.0251.0376
            raise ValueError(host)
    return ascii_host


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that ``host`` is; None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
