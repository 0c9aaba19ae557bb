"""When will a repository be full? Growth is a straight line through the last 30 days, or it is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.retention.capacity import Forecast, Sample, Thresholds, forecast

GIB = 1 << 30
NOW = datetime(2026, 3, 31, 6, 0, tzinfo=UTC)


def sample(days_ago: float, *, used: int, total: int = 1000) -> Sample:
    """GiB; of what is used half are backups."""
    return Sample(
        measured_at=NOW - timedelta(days=days_ago),
        total=total * GIB,
        free=(total - used) * GIB,
        backups=used * GIB // 2,
    )


def test_steady_growth_is_drawn_on() -> None:
    found = forecast([sample(day, used=700 - 10 * day) for day in range(20, -1, -1)])
    assert found.now == sample(0, used=700)
    assert found.growth_per_day == pytest.approx(10 * GIB)
    assert found.full_in_days == pytest.approx(30)
    assert found.used_percent == pytest.approx(70)


def test_what_is_deleted_now_and_then_is_part_of_the_line() -> None:
    """Twenty a day, and a hundred back every tenth day: half of the twenty remain."""
    found = forecast([sample(day, used=800 - 20 * day + 100 * (day // 10)) for day in range(30, -1, -1)])
    assert found.growth_per_day == pytest.approx(10 * GIB, rel=0.2)


@pytest.mark.parametrize("used", [100, 1000])
def test_one_sample_is_no_growth(used: int) -> None:
    found = forecast([sample(0, used=used)])
    assert found == Forecast(now=sample(0, used=used), growth_per_day=None, full_in_days=None)


def test_samples_of_one_day_are_no_growth_but_of_a_whole_day_they_are() -> None:
    day = [sample(hours / 24, used=500 - hours) for hours in range(24)]
    assert forecast(day).growth_per_day is None
    assert forecast([*day, sample(1, used=476)]).growth_per_day == pytest.approx(24 * GIB)
    assert forecast([sample(0, used=500)] * 3).growth_per_day is None


def test_what_was_before_the_last_thirty_days_says_nothing() -> None:
    recent = [sample(30, used=500), sample(15, used=515), sample(0, used=530)]
    old = [sample(31, used=0), sample(400, used=999)]
    assert forecast([*old, *recent]) == forecast(recent)
    assert forecast([*old, sample(0, used=530)]).growth_per_day is None
    assert forecast([sample(30, used=0), sample(0, used=30)]).growth_per_day == pytest.approx(GIB)


def test_a_repository_that_shrinks_or_stands_still_is_never_full() -> None:
    shrinking = forecast([sample(10, used=900), sample(0, used=800)])
    assert shrinking.growth_per_day == pytest.approx(-10 * GIB)
    assert shrinking.full_in_days is None
    still = forecast([sample(day, used=333) for day in range(20)])
    assert (still.growth_per_day, still.full_in_days) == (0, None)


def test_growth_is_of_what_is_used_though_the_nas_got_larger() -> None:
    found = forecast([sample(10, used=900), sample(0, used=1000, total=2000)])
    assert found.full_in_days == pytest.approx(100)


def test_a_full_disk_is_full_in_no_days() -> None:
    found = forecast([sample(10, used=900), sample(0, used=1000)])
    assert (found.used_percent, found.full_in_days) == (100, 0)
    assert found.warning(Thresholds()) == (
        "100 % is used (warn_percent: 85) and full in 0 days at its growth (warn_days: 30)"
    )


def test_a_file_system_without_a_size_is_taken_for_full() -> None:
    assert forecast([sample(0, used=0, total=0)]).used_percent == 100


@pytest.mark.parametrize(
    ("used", "full_in", "warning"),
    [
        (849, None, None),
        (850, None, "85 % is used (warn_percent: 85)"),
        (400, 30.5, None),
        (400, 30, "full in 30 days at its growth (warn_days: 30)"),
        (400, 9.6, "full in 10 days at its growth (warn_days: 30)"),
        (990, 2, "99 % is used (warn_percent: 85) and full in 2 days at its growth (warn_days: 30)"),
    ],
)
def test_a_warning_names_what_was_passed(used: int, full_in: float | None, warning: str | None) -> None:
    assert Forecast(now=sample(0, used=used), full_in_days=full_in).warning(Thresholds()) == warning


def test_thresholds_are_the_operators() -> None:
    found = Forecast(now=sample(0, used=600), full_in_days=40)
    assert found.warning(Thresholds()) is None
    assert found.warning(Thresholds(warn_percent=60, warn_days=0)) == "60 % is used (warn_percent: 60)"
    assert found.warning(Thresholds(warn_percent=100, warn_days=40)) == "full in 40 days at its growth (warn_days: 40)"


@given(hours=st.lists(st.integers(0, 29 * 24), min_size=2, max_size=20, unique=True), growth=st.integers(-5, 15))
def test_a_straight_line_is_found_from_any_samples_in_any_order(hours: list[int], growth: int) -> None:
    end = sample(0, used=500)
    samples = [
        replace(end, measured_at=NOW - timedelta(hours=hour), free=end.free + growth * GIB * hour // 24)
        for hour in hours
    ]
    found = forecast(samples)
    assert found.now.measured_at == NOW - timedelta(hours=min(hours))
    if max(hours) - min(hours) < 24:
        assert found.growth_per_day is None
    else:
        assert found.growth_per_day == pytest.approx(growth * GIB, abs=10)
        assert (found.full_in_days is None) == (growth <= 0)
