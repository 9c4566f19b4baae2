"""Receivers: one address each, reached through apprise. No address ever leaves this module."""

from __future__ import annotations

import importlib
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

from etl.config import NotifySettings, Secret
from etl.errors import UsageError
from etl.notify.digest import Message, shortened
from etl.printable import printable

_LOGGER: Final = "apprise"
_ROOM_FOR_MARKUP: Final = 64
"""Characters that a plugin may add around title and body."""
_TELLING: Final = 4
"""Only parts of an address longer than this are masked in a receiver's answer: shorter ones are common words."""


class Sender(Protocol):
    """Something that can send a message."""

    name: str

    def send(self, message: Message) -> str | None:
        """Send it; return None, or why it failed, in a few words without the address. Blocks, never raises."""


class UnusableReceiver(NamedTuple):
    """An address that no message can be sent to, and why."""

    name: str
    why: str


class Receiver:
    """One address of a [[notify]]."""

    def __init__(self, name: str, url: Secret, plugin: Any) -> None:
        self.name = name
        """A name without the address: "notify[1] mailto://***"."""
        self._url = url
        self._plugin = plugin
        self._format = plugin.resolve_format("text")
        """What text is turned into for it: a plugin leaves that to its caller, and some would take names for markup."""

    def send(self, message: Message) -> str | None:
        """See `Sender`. A redirect is a refusal: what follows it is another request, without the message."""
        fitting = shortened(message, lambda body: self._has_room(message.title, body))
        has_own_title = self._plugin.title_maxlen > 0
        with _captured_log() as logged:
            try:
                sent = self._plugin.notify(
                    title=fitting.title if has_own_title else self._converted(fitting.title),
                    body=self._converted(fitting.body),
                    body_format=self._format,
                    body_passthrough=False,
                    notify_type="warning" if message.needs_attention else "info",
                    overflow="truncate",
                )
            except Exception as error:
                return f"{type(error).__name__}: {_without(self._url, str(error))}"
        return None if sent else _without(self._url, "; ".join(logged)) or "it did not say why"

    def _converted(self, text: str) -> str:
        conversion: Any = importlib.import_module("apprise.conversion")
        return str(conversion.convert_between("text", self._format, text))

    def _has_room(self, title: str, body: str) -> bool:
        """Whether the receiver takes it whole. Some count in units of UTF-16."""
        text = self._converted(f"{title}\n{body}")
        return len(text.encode("utf-16-le")) // 2 + _ROOM_FOR_MARKUP <= int(self._plugin.body_maxlen)


def receivers(number: int, settings: NotifySettings) -> Iterator[Receiver | UnusableReceiver]:
    """The addresses of the ``number``-th [[notify]], parsed. Raises UsageError without the extra."""
    apprise = _library()
    asset = apprise.AppriseAsset(
        app_id="Flowtrail",
        app_desc="Flowtrail",
        storage_mode="memory",
        http_redirects=False,
        pgp_autogen=False,
        pem_autogen=False,
    )
    for nth, url in enumerate(settings.urls, 1):
        which = f" {nth}" if len(settings.urls) > 1 else ""
        name = f"notify[{number}]{which} {url.reveal().partition('://')[0].lower()}://***"
        with _captured_log() as logged, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first address makes it import all that it knows, old things too
            plugin = apprise.Apprise.instantiate(url.reveal(), asset=asset)
        if plugin is None:
            reason = _without(url, "; ".join(logged))
            yield UnusableReceiver(name, f"is not a usable address: {reason or 'apprise does not know this kind'}")
        else:
            yield Receiver(name, url, plugin)


def _library() -> Any:
    try:
        import apprise
    except ImportError as error:
        raise UsageError("Notifications need apprise: pip install 'flowtrail[notify]'") from error
    logging.getLogger(_LOGGER).propagate = False  # its lines may quote an address: `_captured_log` takes them
    return apprise


@contextmanager
def _captured_log() -> Iterator[Sequence[str]]:
    """Captures what apprise logs meanwhile in this thread; it is logged nowhere else."""
    handler = _LogCapture()
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    try:
        yield handler.heard
    finally:
        logger.removeHandler(handler)


class _LogCapture(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.heard.append(record.getMessage())


def _without(url: Secret, text: str) -> str:
    """``text`` on one line, with ``***`` for every part of the address that it repeats."""
    address = url.reveal().partition("://")[2]
    parts = {part for each in (address, unquote(address)) for part in (each, *re.split(r"[/:@?&=,;#+]", each))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _TELLING:
            text = re.sub(re.escape(part), "***", text, flags=re.IGNORECASE)
    return printable(" ".join(text.split()))
