"""Unit tests have no database: the fixtures that would make one fail, and say where such a test belongs."""

from __future__ import annotations

import pytest


@pytest.fixture(name="dialect")
def refused_dialect() -> None:
    pytest.fail("a unit test gets no database: move it to tests/contract")


@pytest.fixture(scope="session", name="postgres")
def refused_postgres() -> None:
    pytest.fail("a unit test gets no PostgreSQL: move it to tests/contract")


@pytest.fixture(scope="session", name="migrated_sqlite")
def refused_sqlite() -> None:
    pytest.fail("a unit test gets no SQLite file: move it to tests/contract")
