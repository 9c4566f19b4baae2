"""Work is split into groups of bounded size."""

from __future__ import annotations

import pytest

from etl.store.bulk import grouped


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([1, 2, 2, 1], [[1, 2], [2, 1]], id="as many as fit"),
        pytest.param([1, 7, 1, 3], [[1], [7], [1], [3]], id="a larger item alone"),
        pytest.param([0, 3, 0, 1], [[0, 3, 0], [1]], id="items without a size"),
    ],
)
def test_a_group_is_closed_before_it_gets_too_large(sizes: list[int], expected: list[list[int]]) -> None:
    assert list(grouped(sizes, int, 3)) == expected
