"""Sizes as people read and write them."""

import pytest

from hvpspec.errors import InputError
from hvpspec.memory import check_size, readable


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1023, "0.999 KiB"), (1536, "1.5 KiB"), (1020 * 2**20, "0.996 GiB"), (2**43, "8 TiB")],
)
def test_sizes_are_shown_to_three_figures(size, shown):
    assert readable(size) == shown


@pytest.mark.parametrize(
    ("size", "expected"), [(None, None), (7, 7), ("2GiB", 2**31), ("1.5 kb", 1500), ("64m", 64_000_000)]
)
def test_sizes_are_read(size, expected):
    assert check_size("memory_limit", size) == expected


@pytest.mark.parametrize("size", [0, -1, True, "2 parsecs", "1.2.3 GiB", float("inf"), [1]])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InputError, match="memory_limit must be a number of bytes"):
        check_size("memory_limit", size)
