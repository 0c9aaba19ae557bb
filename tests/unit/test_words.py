"""Sizes and lengths of time as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.words import short_span, size, span, speed


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (-0.3, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (-1536, "-1.5 KiB"),
        (1023.6 * 1024, "1 MiB"),
        (1 << 40, "1 TiB"),
        (123456789012, "115 GiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_bytes_come_in_the_largest_unit_that_fits(count: float, text: str) -> None:
    assert size(count) == text


def test_a_speed_is_a_size_a_second() -> None:
    assert speed(1.25 * (1 << 20)) == "1.2 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "short", "long"),
    [
        (-5, "0 s", "0 seconds"),
        (0, "0 s", "0 seconds"),
        (0.4, "0 s", "0 seconds"),
        (12, "12 s", "12 seconds"),
        (59.6, "1 min", "1 minute"),
        (60, "1 min", "1 minute"),
        (61, "1 min 1 s", "1 minute 1 second"),
        (40 * 60 + 12, "40 min 12 s", "40 minutes 12 seconds"),
        (3599.9, "1 h", "1 hour"),
        (3600 + 90, "1 h 2 min", "1 hour 2 minutes"),
        (3600 * 26, "1 d 2 h", "1 day 2 hours"),
        (3600 * 26 + 180, "1 d 2 h", "1 day 2 hours"),
        (86_400 + 59, "1 d", "1 day"),
        (86_400 + 61, "1 d", "1 day"),  # never days with seconds, nor with minutes
        (86_400 * 2, "2 d", "2 days"),
        (86_400 * 3 + 300, "3 d", "3 days"),
    ],
)
def test_lengths_of_time_come_in_two_neighbouring_units(seconds: float, short: str, long: str) -> None:
    assert short_span(seconds) == short
    assert span(timedelta(seconds=seconds)) == long


@given(st.integers(0, 10**9))
def test_both_spellings_say_the_same(seconds: int) -> None:
    said = span(timedelta(seconds=seconds)).split()
    assert [word if word.isdigit() else word[:1] for word in said] == [
        word if word.isdigit() else word[:1] for word in short_span(seconds).split()
    ]
