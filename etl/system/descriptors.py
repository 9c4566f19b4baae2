"""File descriptors: how many the process may open, and how many of them the page may use.

Each connection to the page takes one. Enough for the database and the gateway are kept in reserve.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import Final

MOST_HTTP_CONNECTIONS: Final = 100
_FEWEST_HTTP_CONNECTIONS: Final = 8
"""Enough for probes, a scraper and one browser."""
_RESERVE: Final = 100
"""For connections to the database (three files each on SQLite), notifications, the log and what libraries open."""
_MOST: Final = 65_536
"""The limit is raised no further, because some programs loop over all possible descriptors."""


def raise_limit() -> int:
    """Raise the limit of this process as far as allowed (at most 65,536); return the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _MOST) if hard != resource.RLIM_INFINITY else _MOST
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MOST if soft == resource.RLIM_INFINITY else soft
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def none_left() -> bool:
    """Whether nothing more can be opened at this moment."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def allocate(allowed: int, requests_in_flight: int) -> tuple[int, int]:
    """How many the service wants for everything that it does, and how many of ``allowed`` the page may use, besides
    ``requests_in_flight`` to the gateway."""
    reserve = _RESERVE + requests_in_flight
    http = max(_FEWEST_HTTP_CONNECTIONS, min(MOST_HTTP_CONNECTIONS, allowed - reserve))
    return reserve + MOST_HTTP_CONNECTIONS, http
