"""The pages over the history of ``tests.support.browser``, requested over HTTP; test modules import the fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests import Response
from sqlalchemy import Engine

from etl.web import HttpServer
from tests.support.browser import Month, month, site

__all__ = ["engine", "get", "month", "rows", "server"]


@pytest.fixture
def engine(dialect: str, month: Month) -> Engine:
    return month.engine(dialect)


@pytest.fixture
def server(engine: Engine) -> Iterator[HttpServer]:
    with site(engine) as running:
        yield running


def get(server: HttpServer, path: str, **query: Any) -> Response:
    return requests.get(server.url + path, params=query, timeout=30)


def rows(server: HttpServer, path: str, **query: Any) -> list[dict[str, Any]]:
    answer = get(server, path, format="json", **query)
    assert answer.ok, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found
