"""Which backups stay and why: worked examples with dates, and an oracle after Proxmox's documented algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasbackup.model import BackupStatus
from nasbackup.retention.rules import PERIODS, RetentionRules, Span
from nasbackup.retention.verdicts import RestorePoint, Verdict, judge, judge_unprotected, window_begin


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


NOW = at("2026-04-01 06:00")
DAY = timedelta(days=1)


def point(number: int, when: str | datetime, **changes: Any) -> RestorePoint:
    """A recorded incremental, so that ``minimum_fulls`` has no say unless a test is about it."""
    default = RestorePoint(
        backup_id=number,
        created_at=at(when) if isinstance(when, str) else when,
        status=BackupStatus.BACKED_UP,
        is_full=False,
        parent_id=None,
        pinned=False,
        expires_at=None,
        is_clean=False,
        external_id=str(when),
        size=1,
    )
    return default._replace(**changes)


def points(*times: str, zone: str = "UTC") -> list[RestorePoint]:
    return [point(number, at(when, zone), external_id=when) for number, when in enumerate(times, start=1)]


def nightly(first: str, last: str) -> list[RestorePoint]:
    day, end, found = at(first), at(last), []
    while day <= end:
        found.append(point(len(found) + 1, day.replace(hour=22), external_id=f"{day:%Y-%m-%d}"))
        day += timedelta(days=1)
    return found


def verdicts(
    backups: Sequence[RestorePoint], *, now: datetime = NOW, timezone: str = "UTC", **rules: Any
) -> list[Verdict]:
    return judge(backups, rules=RetentionRules.from_document(rules), timezone=timezone, now=now)


def kept(backups: Sequence[RestorePoint], **arguments: Any) -> dict[str, str]:
    """External id -> the rule that keeps it, the newest first."""
    return {each.point.external_id: each.rule for each in reversed(verdicts(backups, **arguments)) if each.keep}


def numbers(found: Iterable[Verdict]) -> set[int]:
    return {each.point.backup_id for each in found if each.keep}


# --- keep_*: each rule counts only periods that no rule before has covered -----------------------------------------


def test_a_worked_example() -> None:
    """The days 29 to 31 cover two weeks, those and the weeks cover March, and January is of the year of all these."""
    backups = nightly("2025-12-15", "2026-03-31")
    assert kept(backups, keep_last=1, keep_daily=2, keep_weekly=2, keep_monthly=2, keep_yearly=1) == {
        "2026-03-31": "keep_last",
        "2026-03-30": "keep_daily",
        "2026-03-29": "keep_daily",
        "2026-03-22": "keep_weekly",
        "2026-03-15": "keep_weekly",
        "2026-02-28": "keep_monthly",
        "2026-01-31": "keep_monthly",
        "2025-12-31": "keep_yearly",
    }


def test_of_several_a_day_the_newest_stays_and_days_without_backups_do_not_count() -> None:
    backups = points("2026-03-01 08:00", "2026-03-01 20:00", "2026-03-09 08:00", "2026-03-31 08:00", "2026-03-31 09:00")
    assert list(kept(backups, keep_daily=3)) == ["2026-03-31 09:00", "2026-03-09 08:00", "2026-03-01 20:00"]
    rules = {each.point.external_id: each.rule for each in verdicts(backups, keep_daily=2) if not each.keep}
    assert rules["2026-03-31 08:00"] == "not_the_newest_of_keep_daily"
    assert rules["2026-03-01 20:00"] == "no_rule_keeps_it"


def test_without_rules_everything_stays() -> None:
    backups = nightly("2020-01-01", "2020-03-01")
    assert len(kept(backups)) == len(backups)
    assert set(kept(backups, minimum_fulls=2).values()) == {"keeps_everything"}


IDENTITIES = {
    "last": None,
    "hourly": "%Y/%m/%d/%H %z",
    "daily": "%Y/%m/%d",
    "weekly": "%G/%V",
    "monthly": "%Y/%m",
    "yearly": "%Y",
}


def proxmox(backups: Sequence[RestorePoint], *, rules: RetentionRules, timezone: str) -> set[int]:
    """What Proxmox Backup Server's prune keeps, protected ones aside: they are neither counted nor removed."""
    marks: dict[int, bool] = {}
    candidates = [
        each for each in reversed(backups) if each.status == "BackedUp" and not each.pinned and each.expires_at is None
    ]
    for period, form in IDENTITIES.items():
        names = {
            each.backup_id: each.created_at.astimezone(ZoneInfo(timezone)).strftime(form) if form else each.external_id
            for each in candidates
        }
        covered = {names[number] for number, keep in marks.items() if keep}
        included: list[str] = []
        for each in candidates:
            name = names[each.backup_id]
            if each.backup_id in marks or name in covered:
                continue
            if name in included:
                marks[each.backup_id] = False
            elif len(included) < getattr(rules, f"keep_{period}"):
                included.append(name)
                marks[each.backup_id] = True
            else:
                break
    return {number for number, keep in marks.items() if keep}


STATUSES = [BackupStatus.BACKED_UP] * 12 + list(BackupStatus)
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Australia/Lord_Howe"]
GAPS = [timedelta(minutes=1), timedelta(minutes=20), timedelta(hours=1), timedelta(hours=7), timedelta(days=1)]
GAPS += [timedelta(days=1), timedelta(days=6), timedelta(days=25), timedelta(days=200)]


@st.composite
def histories(draw: st.DrawFn, *, clock_may_jump: bool = False) -> list[RestorePoint]:
    moment = at("2024-01-01 00:00") + draw(st.integers(0, 400)) * timedelta(hours=25)
    found = []
    for number in range(draw(st.integers(0, 30))):
        moment += draw(st.sampled_from(GAPS)) * (draw(st.sampled_from([1, 1, 1, -1])) if clock_may_jump else 1)
        found.append(
            point(
                10 * number,
                moment,
                external_id=f"backup-{number}",
                status=draw(st.sampled_from(STATUSES)),
                is_full=draw(st.booleans()),
                pinned=draw(st.sampled_from([False] * 7 + [True])),
                expires_at=draw(st.sampled_from([None] * 6 + [NOW - timedelta(days=9), NOW + timedelta(days=9)])),
                is_clean=draw(st.booleans()),
            )
        )
    return found


counts = st.fixed_dictionaries({}, optional={f"keep_{period}": st.integers(1, 5) for period in PERIODS})
windows = st.sampled_from([None, "3 days", "2 weeks", "5 months", "1 year"])
all_rules = st.builds(
    lambda chosen, window, floor, cap: RetentionRules.from_document(
        {**chosen, "recovery_window": window, "minimum_fulls": floor, "max_backups": cap}
    ),
    counts,
    windows,
    st.integers(1, 4),
    st.sampled_from([None, None, 1, 3, 9]),
)


@settings(max_examples=300, deadline=None)
@given(backups=histories(), chosen=counts.filter(bool), timezone=st.sampled_from(ZONES))
def test_counts_keep_what_proxmox_keeps(backups: list[RestorePoint], chosen: dict[str, int], timezone: str) -> None:
    backups = [each._replace(is_full=False) for each in backups]
    rules = RetentionRules.from_document(chosen)
    found = judge(backups, rules=rules, timezone=timezone, now=NOW)
    by_count = {each.point.backup_id for each in found if each.keep and each.rule.startswith("keep_")}
    assert by_count == proxmox(backups, rules=rules, timezone=timezone)


@settings(deadline=None)
@given(backups=histories(), period=st.sampled_from(PERIODS), count=st.integers(1, 6), floor=st.integers(1, 4))
def test_a_higher_count_keeps_no_fewer(backups: list[RestorePoint], period: str, count: int, floor: int) -> None:
    """Of a single rule. Of several, what one covers more another covers less."""
    lower = verdicts(backups, **{f"keep_{period}": count}, minimum_fulls=floor)
    higher = verdicts(backups, **{f"keep_{period}": count + 1}, minimum_fulls=floor)
    assert len(numbers(higher)) >= len(numbers(lower))
    assert {each.point for each in lower if each.rule == f"keep_{period}"} <= {
        each.point for each in higher if each.rule == f"keep_{period}"
    }


# --- whose days ---------------------------------------------------------------------------------------------------


def test_days_and_months_are_those_of_the_policys_zone() -> None:
    backups = points("2026-01-31 22:30", "2026-01-31 23:30")  # the second is of February in Berlin
    for rule in ("keep_daily", "keep_monthly"):
        assert len(kept(backups, **{rule: 9})) == 1
        assert len(kept(backups, **{rule: 9}, timezone="Europe/Berlin")) == 2


def test_weeks_are_iso_weeks_also_at_the_turn_of_the_year() -> None:
    backups = points("2024-12-29 12:00", "2024-12-30 12:00", "2025-01-03 12:00", "2026-12-28 12:00", "2027-01-01 12:00")
    found = kept(backups, keep_weekly=9, now=at("2027-02-01 00:00"))
    assert list(found) == ["2027-01-01 12:00", "2025-01-03 12:00", "2024-12-29 12:00"]


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    backups = points("2026-10-25 00:30", "2026-10-25 00:40", "2026-10-25 01:30")  # 02:30 and 02:40 CEST, 02:30 CET
    found = kept(backups, keep_hourly=9, timezone="Europe/Berlin", now=at("2026-10-26 00:00"))
    assert list(found) == ["2026-10-25 01:30", "2026-10-25 00:40"]


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-07-01", 24)])
def test_a_day_is_one_day_however_long(day: str, hours: int) -> None:
    midnight = at(f"{day} 00:00", "Europe/Berlin")
    backups = [
        point(hour + 2, midnight + timedelta(hours=hour), external_id=str(hour)) for hour in range(-1, hours + 1)
    ]
    found = kept(backups, keep_daily=9, timezone="Europe/Berlin", now=midnight + timedelta(days=2))
    assert list(found) == [str(hours), str(hours - 1), "-1"], "the next day's, its last, and the last of the day before"
    assert len(kept(backups, keep_hourly=99, timezone="Europe/Berlin", now=midnight)) == hours + 2


# --- recovery_window ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "now", "begin"),
    [
        ("1 month", "2026-03-31 12:00", "2026-02-28 12:00"),
        ("3 months", "2026-03-31 12:00", "2025-12-31 12:00"),
        ("1 year", "2028-02-29 12:00", "2027-02-28 12:00"),
        ("1 month", "2026-04-01 00:30", "2026-03-01 00:30"),  # still March in UTC
        ("1 day", "2026-03-29 12:00", "2026-03-28 12:00"),  # 23 hours
        ("2 weeks", "2026-11-01 12:00", "2026-10-18 12:00"),  # and an hour
    ],
)
def test_a_window_is_counted_back_on_the_zones_calendar(window: str, now: str, begin: str) -> None:
    found = window_begin(Span.parse(window), timezone="Europe/Berlin", now=at(now, "Europe/Berlin"))
    assert found == at(begin, "Europe/Berlin")


def test_a_window_keeps_all_of_it_and_the_first_backup_before() -> None:
    backups = points("2026-02-26 12:00", "2026-02-27 12:00", "2026-02-28 11:59", "2026-02-28 12:00", "2026-03-09 12:00")
    assert kept(backups, recovery_window="1 month", now=at("2026-03-31 12:00")) == {
        "2026-03-09 12:00": "recovery_window",
        "2026-02-28 12:00": "recovery_window",
        "2026-02-28 11:59": "recovery_window_reaches_back_to_it",
    }


def test_a_window_with_nothing_in_it_still_keeps_the_newest() -> None:
    assert list(kept(nightly("2025-01-01", "2025-01-09"), recovery_window="1 week")) == ["2025-01-09"]


@pytest.mark.parametrize("window", ["3000 years", "99999 months"])
def test_a_window_longer_than_the_calendar_keeps_everything(window: str) -> None:
    assert len(kept(nightly("2025-01-01", "2025-01-09"), recovery_window=window)) == 9


def test_a_window_adds_to_the_counts_and_never_takes_away() -> None:
    backups = points("2026-01-15 08:00", "2026-03-25 08:00", "2026-03-28 08:00", "2026-03-28 20:00")
    found = kept(backups, keep_daily=1, keep_monthly=2, recovery_window="5 days")
    assert found == {
        "2026-03-28 20:00": "keep_daily",
        "2026-03-28 08:00": "recovery_window",
        "2026-03-25 08:00": "recovery_window_reaches_back_to_it",
        "2026-01-15 08:00": "keep_monthly",
    }


@settings(deadline=None)
@given(backups=histories(), chosen=counts, window=windows.filter(bool), timezone=st.sampled_from(ZONES))
def test_any_moment_of_the_window_can_be_gone_back_to(
    backups: list[RestorePoint], chosen: dict[str, int], window: str, timezone: str
) -> None:
    found = verdicts(backups, **chosen, recovery_window=window, timezone=timezone)
    begin = window_begin(Span.parse(window), timezone=timezone, now=NOW)
    rulable = [each for each in found if each.point.status == "BackedUp" and each.rule != "expired"]
    assert all(each.keep for each in rulable if each.point.created_at >= begin)
    assert all(each.keep for each in [each for each in rulable if each.point.created_at < begin][-1:])
    if not chosen:
        assert sum(each.rule == "recovery_window_reaches_back_to_it" for each in found) <= 1


# --- pins, expiry dates, a cap and a floor ---------------------------------------------------------------------------


def test_a_pinned_backup_stays_whatever_else_and_takes_no_ones_place() -> None:
    old, *others, newest = nightly("2026-03-01", "2026-03-31")
    pins = [old._replace(pinned=True, expires_at=at("2026-03-05 00:00")), *others, newest._replace(pinned=True)]
    assert kept(pins, keep_daily=2, max_backups=4) == {
        "2026-03-31": "pinned",
        "2026-03-30": "keep_daily",
        "2026-03-29": "keep_daily",
        "2026-03-01": "pinned",
    }


def test_an_expiry_date_is_kept_to_the_second() -> None:
    backups = [each._replace(expires_at=NOW) for each in nightly("2026-03-01", "2026-03-02")]
    before = kept(backups, keep_last=1, now=NOW - timedelta(seconds=1))
    assert before == {"2026-03-02": "not_expired_yet", "2026-03-01": "not_expired_yet"}
    assert {(each.keep, each.rule) for each in verdicts(backups)} == {(False, "expired")}, "even without rules"


def test_a_cap_takes_the_oldest_but_never_those_with_somebodys_word() -> None:
    backups = nightly("2026-03-01", "2026-03-08")
    backups[0] = backups[0]._replace(pinned=True)
    backups[1] = backups[1]._replace(expires_at=NOW + timedelta(days=1))
    assert list(kept(backups, max_backups=4)) == ["2026-03-08", "2026-03-07", "2026-03-02", "2026-03-01"]
    assert list(kept(backups, max_backups=4, keep_last=6, recovery_window="1 year")) == [
        *("2026-03-08", "2026-03-07", "2026-03-02", "2026-03-01")
    ]
    assert [each.rule for each in verdicts(backups, max_backups=4) if not each.keep] == ["max_backups"] * 4
    assert len(kept(backups, max_backups=8)) == 8


def test_the_newest_fulls_stay_when_no_rule_keeps_one() -> None:
    backups = [
        each._replace(is_full=number % 4 == 0) for number, each in enumerate(nightly("2026-03-01", "2026-03-11"))
    ]
    for rules in ({"keep_last": 2}, {"max_backups": 2}, {"recovery_window": "1 day"}):
        found = kept(backups, **rules, minimum_fulls=2, now=at("2026-03-12 22:00"))
        assert list(found)[-2:] == ["2026-03-09", "2026-03-05"]
        assert found["2026-03-05"] == "minimum_fulls"
    assert "2026-03-01" in kept(backups, keep_last=1, minimum_fulls=9), "all there are"
    assert "2026-03-05" not in kept(backups, keep_last=3, minimum_fulls=1), "keep_last has a full already"


def test_the_last_full_outlives_its_expiry_date() -> None:
    backups = [point(1, "2026-03-01 22:00", is_full=True, expires_at=at("2026-03-02 22:00"))]
    assert list(kept(backups, keep_daily=7).values()) == ["minimum_fulls"]


@settings(deadline=None)
@given(backups=histories(clock_may_jump=True), rules=all_rules, timezone=st.sampled_from(ZONES))
def test_what_holds_for_all_rules_together(backups: list[RestorePoint], rules: RetentionRules, timezone: str) -> None:
    found = judge(backups, rules=rules, timezone=timezone, now=NOW)
    assert [each.point for each in found] == backups
    assert all(each.rule for each in found)
    restorable = [each for each in found if each.point.status == "BackedUp"]
    assert all(each.keep for each in restorable if each.point.pinned)
    fulls = [each for each in restorable if each.point.is_full]
    assert all(each.keep for each in fulls[-rules.minimum_fulls :]), "the newest ones"
    ruled = [each for each in restorable if not each.point.pinned and each.point.expires_at is None]
    if rules.max_backups is None:
        assert all(each.keep for each in ruled[-1:]), "the newest that a rule may decide on stays"
    else:
        assert all(each.keep or each.rule == "expired" for each in restorable[-1:] if each in ruled), "never the newest"
        plain = [each for each in restorable if each.keep and each.rule != "minimum_fulls"]
        words = sum(each.rule in ("pinned", "not_expired_yet") for each in plain)
        assert len(plain) <= max(rules.max_backups, words + 1), "the newest that is kept, beside pins and dates"


# --- backups that nobody could restore -------------------------------------------------------------------------------


def test_failed_ones_push_nothing_out_and_go_when_they_are_cleaned_up_and_old() -> None:
    failed = {"status": BackupStatus.FAILED}
    backups = [
        point(1, "2026-01-01 22:00", external_id="a good one"),
        point(2, NOW - timedelta(days=30), external_id="30 days", is_clean=True, **failed),
        point(3, NOW - timedelta(days=30) + timedelta(seconds=1), external_id="nearly 30", is_clean=True, **failed),
        point(4, "2025-01-01 22:00", external_id="not cleaned up", **failed),
        point(5, NOW, external_id="running", status=BackupStatus.BACKING_UP),
    ]
    assert kept(backups, keep_last=1, max_backups=1) == {
        "running": "being_made",
        "not cleaned up": "failed_not_cleaned_up",
        "nearly 30": "failed",
        "a good one": "keep_last",
    }


@pytest.mark.parametrize("status", [BackupStatus.DELETE_PENDING, BackupStatus.DELETING])
def test_one_on_its_way_out_counts_for_nothing(status: BackupStatus) -> None:
    leaving = point(2, "2026-03-31 23:00", external_id="leaving", status=status, is_full=True, pinned=True)
    backups = [point(1, "2026-03-31 22:00", external_id="full", is_full=True), leaving]
    for rules in ({"keep_daily": 1}, {"keep_last": 1}, {"max_backups": 1}, {"recovery_window": "1 day"}, {}):
        assert list(kept(backups, **rules)) == ["full"]
    assert verdicts(backups)[1].rule == "deletion_begun"


@settings(deadline=None)
@given(backups=histories(clock_may_jump=True), rules=all_rules, place=st.integers(0, 30), clean=st.booleans())
def test_a_failed_backup_changes_no_other_verdict(
    backups: list[RestorePoint], rules: RetentionRules, place: int, clean: bool
) -> None:
    failed = point(10 * place + 5, NOW, status=BackupStatus.FAILED, is_full=True, is_clean=clean)
    more = sorted([*backups, failed], key=lambda each: each.backup_id)
    found = judge(more, rules=rules, now=NOW)
    assert [each for each in found if each.point != failed] == judge(backups, rules=rules, now=NOW)


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_the_latest_begun_stay_though_the_clock_was_put_back() -> None:
    backups = points("2027-05-01 22:00", "2027-05-02 22:00", "2026-03-30 22:00", "2026-03-31 22:00")
    assert list(kept(backups, keep_last=2)) == ["2026-03-31 22:00", "2026-03-30 22:00"]
    assert list(kept(backups, max_backups=3)) == ["2026-03-31 22:00", "2026-03-30 22:00", "2027-05-02 22:00"]


def test_a_backup_from_the_future_is_in_the_window() -> None:
    backups = points("2026-01-01 22:00", "2031-01-01 22:00", "2026-03-31 22:00")
    assert kept(backups, recovery_window="1 week")["2031-01-01 22:00"] == "recovery_window"


@pytest.mark.parametrize("first", ["2026-03-30 22:00", "2031-01-01 22:00"])
def test_a_window_keeps_all_of_it_though_the_clock_was_wrong_in_between(first: str) -> None:
    backups = points(first, "2026-01-01 22:00", "2026-03-31 22:00")
    assert first in kept(backups, recovery_window="1 week")


def test_a_backup_from_the_past_does_not_take_the_place_of_the_first_before_the_window() -> None:
    """The 18th and on can be gone back to from the 1st alone: what 1970 says was made on the 25th."""
    backups = points("2026-03-01 22:00", "1970-01-01 00:00", "2026-03-31 22:00")
    assert kept(backups, recovery_window="14 days") == {
        "2026-03-31 22:00": "recovery_window",
        "1970-01-01 00:00": "recovery_window_reaches_back_to_it",
        "2026-03-01 22:00": "recovery_window_reaches_back_to_it",
    }


@settings(deadline=None)
@given(backups=histories(clock_may_jump=True), chosen=counts, window=windows.filter(bool))
def test_any_moment_of_the_window_can_be_gone_back_to_whatever_the_clock_did(
    backups: list[RestorePoint], chosen: dict[str, int], window: str
) -> None:
    """By what the backups say of themselves, and by the order in which they were begun."""
    found = verdicts(backups, **chosen, recovery_window=window)
    begin = window_begin(Span.parse(window), timezone="UTC", now=NOW)
    rulable = [each for each in found if each.point.status == "BackedUp" and each.rule != "expired"]
    before = [each for each in rulable if each.point.created_at < begin]
    assert all(each.keep for each in rulable if each.point.created_at >= begin)
    assert all(each.keep for each in before[-1:])
    if before:
        latest = max(each.point.created_at for each in before)
        assert any(each.keep for each in before if each.point.created_at == latest)


# --- VMs without a policy ---------------------------------------------------------------------------------------------


def test_backups_of_an_unprotected_vm_stay_for_a_while_and_then_all_go_but_pinned_ones() -> None:
    backups = nightly("2026-01-01", "2026-01-03")
    backups[1] = backups[1]._replace(pinned=True)
    backups[2] = backups[2]._replace(is_full=True)
    since = at("2026-01-31 06:00")
    for days, stays in ((0, 3), (90, 3), (91, 1)):
        found = judge_unprotected(backups, keep_orphaned=Span.parse("90 days"), since=since, now=since + days * DAY)
        assert len(numbers(found)) == stays
        assert {each.rule for each in found} == {"pinned", "unprotected_vm" if stays == 3 else "keep_orphaned"}
    assert judge_unprotected([], keep_orphaned=None, since=since, now=NOW) == []


def test_what_was_made_after_that_is_counted_from_its_own_begin() -> None:
    """Somebody backs the VM up by hand, every day: that goes one by one, and the newest is always there."""
    backups = nightly("2026-01-01", "2026-06-30")
    since = at("2026-01-31 06:00")
    for now in (at("2026-05-01 23:00"), at("2026-05-02 23:00"), at("2026-06-30 23:00")):
        there = [each for each in backups if each.created_at <= now]
        found = judge_unprotected(there, keep_orphaned=Span.parse("30 days"), since=since, now=now)
        assert [each.point for each in found if each.keep] == there[-30:]


def test_without_keep_orphaned_they_stay_until_somebody_decides() -> None:
    backups = nightly("2026-01-01", "2026-01-03")
    backups[0] = backups[0]._replace(expires_at=at("2026-02-01 00:00"))
    backups[1] = backups[1]._replace(status=BackupStatus.FAILED, is_clean=True)
    found = judge_unprotected(backups, keep_orphaned=None, since=at("2026-01-01 00:00"), now=at("2099-01-01 00:00"))
    assert [each.rule for each in found if not each.keep] == ["expired", "failed"]
    assert [each.rule for each in found if each.keep] == ["unprotected_vm"]
