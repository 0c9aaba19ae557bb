"""fleet.yaml: a good file is read as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.errors import UnknownHost, UnknownPolicy
from nasbackup.fleet import DEFAULT_PATH, ENVIRONMENT, Fleet, Policy, Rpo, Selector, Zone, load, path, retention_rules
from nasbackup.fleet.blackout import Blackout, open_at
from nasbackup.fleet.units import rate, speed
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Quiesce
from nasbackup.retention.capacity import Thresholds
from nasbackup.retention.rules import Guard, RetentionRules, Span, Unprotected
from nasbackup.sla.channels import Channel, ChannelType
from nasbackup.sla.findings import Severity

from tests.unit.fleets import GOOD, POLICIES, PROMISE, written


def test_a_good_file_is_read_in_its_order(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, GOOD))
    assert fleet == Fleet(
        zones=(
            Zone(name="east", hosts=("kvm_one", "kvm-two"), repositories=("nas_main", "nas.spare")),
            Zone(name="west", hosts=("kvm_three",), repositories=("nas_main",)),
        )
    )
    assert fleet.hosts == ["kvm_one", "kvm-two", "kvm_three"]
    assert fleet.repositories == ["nas_main", "nas.spare"], "a repository that zones share is named once"


def test_a_host_is_found_in_its_zone_and_an_unknown_one_is_told_the_known(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, GOOD))
    assert fleet.zone_of("kvm_three").name == "west"
    with pytest.raises(UnknownHost, match="Known hosts: kvm_one, kvm-two, kvm_three"):
        fleet.zone_of("kvm_four")


def test_the_place_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(written(tmp_path, GOOD)))
    assert load().hosts[0] == "kvm_one"
    monkeypatch.delenv(ENVIRONMENT)
    assert path() == Path(DEFAULT_PATH)


@pytest.mark.parametrize("word", ["on", "1", "null", "2026-01-01"])
def test_a_zones_name_is_the_word_that_was_written(tmp_path: Path, word: str) -> None:
    fleet = load(written(tmp_path, f"zones: {{{word}: {{hosts: [k], repositories: [n]}}}}"))
    assert [zone.name for zone in fleet.zones] == [word]


# --- policies and retention -------------------------------------------------------------------------------------------


def test_policies_are_read_in_their_order(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, POLICIES))
    assert [policy.name for policy in fleet.policies] == ["databases", "numbered", "standard"]
    assert fleet.policy("databases") == Policy(
        name="databases",
        selector=Selector(vms=("db-*", "i-2-7-VM"), zones=("east",)),
        timezone="Europe/Berlin",
        retention=RetentionRules(
            keep_last=3, keep_daily=7, recovery_window=Span(count=14, unit="days"), minimum_fulls=2, max_backups=90
        ),
    )
    assert fleet.unprotected == Unprotected(keep_orphaned=Span(count=90, unit="days"))
    assert fleet.guard == Guard(backups=50, percent=10)
    assert fleet.capacity == Thresholds(warn_percent=80, warn_days=14)


def test_a_policy_promises_to_keep_everything_unless_told_otherwise(tmp_path: Path) -> None:
    policy = load(written(tmp_path, POLICIES)).policy("numbered")
    assert (policy.selector.zones, policy.timezone) == ((), "UTC")
    assert policy.retention == RetentionRules()
    assert policy.retention.keeps_everything


def test_without_a_word_on_retention_nobody_is_protected_and_nothing_goes(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, GOOD))
    assert fleet.policy_of(vm="db-1", host="kvm_one") is None
    assert fleet.unprotected.keep_orphaned is None
    assert (fleet.guard, fleet.capacity) == (Guard(backups=200, percent=20), Thresholds(warn_percent=85, warn_days=30))


@pytest.mark.parametrize(
    ("vm", "host", "policy"),
    [
        ("db-1", "kvm_one", "databases"),
        ("db-1", "kvm-two", "databases"),
        ("i-2-7-VM", "kvm_one", "databases"),  # the first match wins: numbered matches too
        ("i-2-7-VM", "kvm_three", "numbered"),  # the first is for another zone
        ("i-2-8-VM", "kvm_three", "numbered"),
        ("i-2-88-VM", "kvm_one", "standard"),
        ("DB-1", "kvm_one", "standard"),
        ("my-db-1", "kvm_one", "standard"),
        ("db-1", "kvm_three", None),
        ("i-2-8-VM", "kvm_gone", "numbered"),  # a host that left the fleet is in no zone
        ("db-1", "kvm_gone", None),
    ],
)
def test_the_first_policy_that_matches_is_the_vms(tmp_path: Path, vm: str, host: str, policy: str | None) -> None:
    found = load(written(tmp_path, POLICIES)).policy_of(vm=vm, host=host)
    assert (found and found.name) == policy


def test_an_unknown_policy_is_told_the_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownPolicy, match=r"no policy 'gold'. Its policies: databases, numbered, standard\."):
        load(written(tmp_path, POLICIES)).policy("gold")
    with pytest.raises(UnknownPolicy, match=r"Its policies: none\."):
        load(written(tmp_path, GOOD)).policy("gold")


@pytest.mark.parametrize(
    ("document", "rules"),
    [
        ({}, RetentionRules()),
        (
            {"keep_daily": 7, "recovery_window": "2 weeks"},
            RetentionRules(keep_daily=7, recovery_window=Span.parse("2 weeks")),
        ),
    ],
)
def test_rules_of_one_run_are_read_like_those_of_the_file(document: dict[str, Any], rules: RetentionRules) -> None:
    assert retention_rules(document, named="retention") == rules == RetentionRules.from_document(document)


def test_rules_are_written_as_they_are_read() -> None:
    rules = RetentionRules.from_document({"keep_daily": 7, "keep_yearly": 2, "recovery_window": "1 month"})
    assert str(rules) == "keep_daily=7 keep_yearly=2 recovery_window=1 month minimum_fulls=1"
    assert not rules.keeps_everything
    assert RetentionRules(minimum_fulls=3, max_backups=9).keeps_everything


# --- spans and the guard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "unit", "written_as"),
    [
        ("14 days", 14, "days", "14 days"),
        ("1 week", 1, "weeks", "1 week"),
        ("1 weeks", 1, "weeks", "1 week"),
        ("3 month", 3, "months", "3 months"),
        ("99999 years", 99999, "years", "99999 years"),
    ],
)
def test_a_span_is_a_count_and_a_unit(text: str, count: int, unit: str, written_as: str) -> None:
    span = Span.parse(text)
    assert span == Span(count=count, unit=unit)
    assert str(span) == written_as


@given(count=st.integers(1, 99999), unit=st.sampled_from(["days", "weeks", "months", "years"]))
def test_a_span_is_read_as_it_is_written(count: int, unit: str) -> None:
    assert Span.parse(str(Span(count=count, unit=unit))) == Span(count=count, unit=unit)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "14",
            "days",
            "14days",
            "14  days",
            " 14 days",
            "14 days\n",
            "14 Days",
            "-1 days",
            "0 days",
            "01 days",
            "1.5 days",
        ),
        *("two weeks", "36 hours", "100000 days", "1 day ago", "\u0661\u0664 days"),
    ],
)
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no length of time such as '14 days'"):
        Span.parse(text)


@pytest.mark.parametrize(
    ("removals", "restorable", "objection"),
    [
        (0, 0, None),
        (200, 1000, None),
        (201, 9000, "it would delete 201 backups, more than 200"),
        (9, 9, None),  # few enough never to be asked about: a small fleet would be asked about every day
        (10, 50, None),
        (10, 49, "it would delete 10 of 49 restorable backups, more than 20 %"),
        (60, 100, "it would delete 60 of 100 restorable backups, more than 20 %"),
    ],
)
def test_the_guard_objects_to_more_than_was_allowed(removals: int, restorable: int, objection: str | None) -> None:
    assert Guard().objection(removals=removals, restorable=restorable) == objection


def test_the_guard_is_as_strict_as_it_was_told() -> None:
    assert Guard(backups=0).objection(removals=0, restorable=9) is None
    assert Guard(backups=0).objection(removals=1, restorable=9)
    assert Guard(percent=0).objection(removals=10, restorable=100_000)
    assert Guard(percent=100).objection(removals=200, restorable=200) is None


# --- what else a policy promises --------------------------------------------------------------------------------------


def test_what_a_policy_promises(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, PROMISE))
    gold, silver = fleet.policies
    assert gold == Policy(
        name="gold",
        selector=Selector(titles=("Database *",), metadata={"http://example.org/tier": "gold*"}),
        timezone="Europe/Berlin",
        schedule=("0 1 * * *", "0 13 * * 1-5"),
        blackout=(Blackout.parse("Mon-Fri 08:00-12:00"),),
        repository="nas_spare",
        rpo=Rpo(warn_after=timedelta(hours=14), error_after=timedelta(hours=26)),
        slo=99.9,
        deadline=timedelta(hours=4),
        quiesce=Quiesce.OFF,
        compression=Compression.ZSTD,
        bandwidth=200 << 20,
        verify_level=VerifyLevel.STRUCTURE,
        verify_every=timedelta(days=30),
        drill_every=timedelta(weeks=12),
    )
    assert (silver.compression, silver.bandwidth, silver.verify_level) == (Compression.NONE, None, VerifyLevel.FULL)
    assert silver.rpo == Rpo(warn_after=timedelta(days=2), error_after=timedelta(days=2))
    assert (fleet.zones[0].host_slots, fleet.zones[0].repository_slots, fleet.zones[0].spread) == (3, 8, False)
    where = {"host": "kvm_one", "vm_uuid": "5b1f2c1e-0000-4000-8000-000000000001", "holds": "nas_spare"}
    assert fleet.repository_of(gold, **where) == "nas_spare"
    assert fleet.repository_of(silver, **where) == "nas_main"
    ops, chat = fleet.channels
    assert ops == Channel(
        name="ops",
        type=ChannelType.SMTP,
        connection="smtp_ops",
        to=("ops@example.org",),
        severity=Severity.CRITICAL,
        policies=("gold",),
    )
    assert ops.wants(severity=Severity.CRITICAL, zone="east", policy="gold")
    assert not ops.wants(severity=Severity.WARNING, zone="east", policy="gold")
    assert not ops.wants(severity=Severity.CRITICAL, zone="east", policy="silver")
    assert chat.wants(severity=Severity.WARNING, zone=None, policy=None)


VMS = [f"5b1f2c1e-0000-4000-8000-{number:012}" for number in range(3000)]


def spread(*repositories: str, **policy: Any) -> Callable[..., str]:
    """Where VMs of a zone with these repositories go."""
    zone = Zone(name="east", hosts=("kvm_one",), repositories=repositories, spread=True)
    fleet = Fleet(zones=(zone,))
    promised = Policy(name="all", selector=Selector(vms=("*",)), **policy)

    def place(vm_uuid: str, *, holds: str = "") -> str:
        return fleet.repository_of(promised, host="kvm_one", vm_uuid=vm_uuid, holds=holds)

    return place


def test_vms_are_spread_evenly_over_the_repositories_of_a_zone() -> None:
    place = spread("nas_a", "nas_b", "nas_c")
    counts = Counter(place(vm) for vm in VMS)
    assert set(counts) == {"nas_a", "nas_b", "nas_c"}
    assert all(900 < count < 1100 for count in counts.values())
    assert [spread("nas_c", "nas_a", "nas_b")(vm) for vm in VMS] == [place(vm) for vm in VMS], "in whichever order"


def test_a_repository_that_comes_to_the_zone_takes_new_vms_from_all_others_alike() -> None:
    before, after = spread("nas_a", "nas_b", "nas_c"), spread("nas_a", "nas_b", "nas_c", "nas_d")
    moved = [vm for vm in VMS if before(vm) != after(vm)]
    assert {after(vm) for vm in moved} == {"nas_d"}
    assert all(200 < count < 300 for count in Counter(before(vm) for vm in moved).values())


def test_a_vm_with_backups_stays_where_its_newest_is() -> None:
    place = spread("nas_a", "nas_b", "nas_c")
    assert {place(vm, holds="nas_b") for vm in VMS} == {"nas_b"}
    assert place(VMS[0], holds="nas_old") == place(VMS[0]), "that one is not the zone's any more"
    assert spread("nas_a", "nas_b", repository="nas_b")(VMS[0], holds="nas_a") == "nas_b", "what a policy names counts"


@pytest.mark.parametrize(
    ("title", "tier", "policy"),
    [
        ("Database 1", "gold", "gold"),
        ("Database 1", "gold-plus", "gold"),
        ("Database 1", "silver", "silver"),
        ("Web", "gold", "silver"),  # both have to match
        ("", "", "silver"),
    ],
)
def test_title_and_metadata_choose_the_policy(tmp_path: Path, title: str, tier: str, policy: str) -> None:
    fleet = load(written(tmp_path, PROMISE))
    metadata = {"http://example.org/tier": tier} if tier else {}
    found = fleet.policy_of(vm="i-2-1-VM", host="kvm_one", title=title, metadata=metadata)
    assert found is not None
    assert found.name == policy


@pytest.mark.parametrize(
    ("window", "moment", "opens"),
    [
        ("Mon-Fri 08:00-18:00", "2026-11-25T07:59", "2026-11-25T07:59"),
        ("Mon-Fri 08:00-18:00", "2026-11-25T08:00", "2026-11-25T18:00"),
        ("Mon-Fri 08:00-18:00", "2026-11-25T18:00", "2026-11-25T18:00"),
        ("Mon-Fri 08:00-18:00", "2026-11-28T10:00", "2026-11-28T10:00"),  # a Saturday
        ("22:00-02:00", "2026-11-25T23:00", "2026-11-26T02:00"),
        ("22:00-02:00", "2026-11-26T01:59", "2026-11-26T02:00"),
        ("Sun 22:00-02:00", "2026-11-30T01:00", "2026-11-30T02:00"),  # Monday morning is Sunday's
        ("Sun 22:00-02:00", "2026-11-29T01:00", "2026-11-29T01:00"),
        ("Sat,Sun 00:00-24:00", "2026-11-28T13:00", "2026-11-30T00:00"),
        ("Fri-Mon 06:00-07:00", "2026-11-30T06:30", "2026-11-30T07:00"),
        ("02:00-03:00", "2026-03-29T00:30", "2026-03-29T00:30"),  # the hour that does not exist
        ("01:00-05:00", "2026-10-25T02:30", "2026-10-25T05:00"),  # the night with an hour more
    ],
)
def test_nothing_is_begun_in_a_blackout(window: str, moment: str, opens: str) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    begin = datetime.fromisoformat(moment).replace(tzinfo=berlin)
    found = open_at([Blackout.parse(window)], begin.astimezone(UTC), timezone="Europe/Berlin")
    assert found.timestamp() == datetime.fromisoformat(opens).replace(tzinfo=berlin).timestamp()


def test_speeds() -> None:
    assert rate("200 MiB/s") == 200 << 20
    with pytest.raises(ValueError, match="is no speed such as"):
        rate("200 MB/s")


@given(st.integers(1, 999_999), st.sampled_from(["KiB/s", "MiB/s", "GiB/s"]))
def test_a_speed_is_written_as_it_is_read(count: int, unit: str) -> None:
    assert rate(speed(rate(f"{count} {unit}"))) == rate(f"{count} {unit}")
