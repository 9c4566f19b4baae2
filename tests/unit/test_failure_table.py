"""Every row of docs/failures.md names a test, and each test exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\|(---| what can happen )", line)]
NAMED = re.compile(r"`(tests/\w+/test_\w+\.py)::(test_\w+)`")


@functools.cache
def functions_in(file: str) -> set[str]:
    path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_page_has_its_rows() -> None:
    assert len(ROWS) > 80


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_row_is_proven_by_tests_that_exist(row: str) -> None:
    cells = row.strip("|").split(" | ")
    assert len(cells) == 3
    named = NAMED.findall(cells[2])
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in functions_in(file)] == []
    assert NAMED.sub("", cells[2]).strip(" ,") == "", "nothing stands there but tests"
