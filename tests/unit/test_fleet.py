"""fleet.yaml: a good file is read as it is; a bad one is refused with file, place and sentence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.errors import FleetInvalid, ParamInvalid, UnknownHost, UnknownPolicy
from nasbackup.fleet import DEFAULT_PATH, ENVIRONMENT, Fleet, Policy, Rpo, Selector, Zone, load, path, retention_rules
from nasbackup.fleet.blackout import Blackout, open_at
from nasbackup.fleet.units import rate, speed
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Quiesce
from nasbackup.retention.capacity import Thresholds
from nasbackup.retention.rules import Guard, RetentionRules, Span, Unprotected
from nasbackup.sla.channels import Channel, ChannelType
from nasbackup.sla.findings import Severity

GOOD = """
zones:
  east:
    hosts: [kvm_one, kvm-two]
    repositories: [nas_main, nas.spare]
  west:
    hosts: [kvm_three]
    repositories: [nas_main]
"""

POLICIES = (
    GOOD
    + """
policies:
  databases:
    vms: ["db-*", "i-2-7-VM"]
    zones: [east]
    timezone: Europe/Berlin
    retention: {keep_last: 3, keep_daily: 7, recovery_window: 14 days, minimum_fulls: 2, max_backups: 90}
  numbered:
    vms: ["i-[0-9]-?-VM"]
  standard:
    vms: ["*"]
    zones: [east]
retention:
  keep_orphaned: 90 days
  at_most: {backups: 50, percent: 10}
capacity: {warn_percent: 80, warn_days: 14}
"""
)


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "fleet.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


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


BAD = {
    "empty file": ("", "file", "None is not of type 'object'"),
    "a list": ("- east\n", "file", "is not of type 'object'"),
    "just a word": ("zones", "file", "'zones' is not of type 'object'"),
    "no zones": ("{}", "file", "'zones' is a required property"),
    "zones empty": ("zones: {}", "zones", "should be non-empty"),
    "zones a list": ("zones: [east]", "zones", "is not of type 'object'"),
    "unknown key at the top": (GOOD + "polices: []\n", "file", "'polices' was unexpected"),
    "unknown key in a zone": (
        "zones: {east: {hosts: [a], repositories: [b], repository: c}}",
        "zones.east",
        "'repository' was unexpected",
    ),
    "no hosts": ("zones: {east: {repositories: [nas]}}", "zones.east", "'hosts' is a required property"),
    "no repositories": ("zones: {east: {hosts: [kvm]}}", "zones.east", "'repositories' is a required property"),
    "hosts empty": ("zones: {east: {hosts: [], repositories: [nas]}}", "zones.east.hosts", "should be non-empty"),
    "hosts a word": ("zones: {east: {hosts: kvm, repositories: [nas]}}", "zones.east.hosts", "is not of type 'array'"),
    "hosts null": ("zones: {east: {hosts: , repositories: [nas]}}", "zones.east.hosts", "is not of type 'array'"),
    "a number for a host": (
        "zones: {east: {hosts: [kvm, 7], repositories: [nas]}}",
        "zones.east.hosts[1]",
        "7 is not of type 'string'",
    ),
    "a blank in a name": (
        "zones: {east: {hosts: ['kvm one'], repositories: [nas]}}",
        "zones.east.hosts[0]",
        "'kvm one' does not match",
    ),
    "an empty name": ("zones: {east: {hosts: [''], repositories: [nas]}}", "zones.east.hosts[0]", "'' does not match"),
    "a dot in a zone's name": ("zones: {a.b: {hosts: [k], repositories: [n]}}", "zones", "'a.b' does not match"),
    "the same host twice in a zone": (
        "zones: {east: {hosts: [kvm, kvm], repositories: [nas]}}",
        "zones.east.hosts",
        "has non-unique elements",
    ),
    "a host in two zones": (
        "zones: {east: {hosts: [kvm], repositories: [n]}, west: {hosts: [kvm], repositories: [n]}}",
        "zones",
        "host kvm is in more than one zone",
    ),
    "twins to Airflow": (
        "zones: {east: {hosts: [kvm.one, kvm_one], repositories: [n]}}",
        "zones",
        "hosts kvm_one and kvm.one have the same name",
    ),
    "a tab for indentation": ("zones:\n\teast: {}\n", "line 2", "cannot start any token"),
    "a bracket that is not closed": ("zones:\n  east:\n    hosts: [kvm\n", "line 4", "expected"),
    "an unknown tag": ("zones:\n  east: !!python/object:os.system {}\n", "line 2", "could not determine a constructor"),
    "two documents": ("zones: {}\n---\nzones: {}\n", "line 2", "another document"),
    "a control character": ("zones: \x00\n", "file", ""),
    "not UTF-8": (b"zones: {\xe4st: {hosts: [k], repositories: [n]}}", "file", ""),
    "one zone written twice": (
        "zones:\n  east: {hosts: [a], repositories: [n]}\n  east: {hosts: [b], repositories: [n]}\n",
        "",
        "east",
    ),
    "policies a list": (GOOD + "policies: [standard]\n", "policies", "is not of type 'object'"),
    "policies null": (GOOD + "policies:\n", "policies", "None is not of type 'object'"),
    "a blank in a policy's name": (GOOD + "policies: {a b: {vms: ['*']}}\n", "policies", "'a b' does not match"),
    "a policy written twice": (
        GOOD + "policies:\n  all: {vms: ['*']}\n  all: {vms: [db]}\n",
        "line 11",
        "'all' is there twice",
    ),
    **{
        f"a policy with {words}": (GOOD + f"policies: {{all: {policy}}}\n", f"policies.all{field}", problem)
        for words, policy, field, problem in [
            ("no VMs", "{zones: [east]}", "", "it says nothing about which VMs it is for: add vms, titles or metadata"),
            ("vms empty", "{vms: []}", ".vms", "should be non-empty"),
            ("vms a word", "{vms: '*'}", ".vms", "is not of type 'array'"),
            ("an empty glob", "{vms: ['']}", ".vms[0]", "should be non-empty"),
            ("an unknown key", "{vms: ['*'], keep_daily: 7}", "", "'keep_daily' was unexpected"),
            ("an unknown zone", "{vms: ['*'], zones: [east, north]}", ".zones[1]", "there is no zone 'north'"),
            (
                "an unknown repository",
                "{vms: ['*'], repository: nas_old}",
                ".repository",
                "there are: nas_main, nas.spare",
            ),
            ("no glob of a title", "{titles: ['']}", ".titles[0]", "should be non-empty"),
            (
                "metadata of numbers",
                "{metadata: {'http://example.org/tier': 1}}",
                ".metadata.http://example.org/tier",
                "1 is not",
            ),
            ("a schedule of words", "{vms: ['*'], schedule: nightly}", ".schedule", "'nightly' is no cron expression"),
            ("seconds in its schedule", "{vms: ['*'], schedule: '0 0 22 * * *'}", ".schedule", "is no cron expression"),
            ("an hour too late", "{vms: ['*'], schedule: ['0 1 * * *', '0 24 * * *']}", ".schedule[1]", "no cron"),
            ("a number for a schedule", "{vms: ['*'], schedule: 22}", ".schedule", "22 does not match: write it like"),
            ("a blackout of words", "{vms: ['*'], blackout: [office hours]}", ".blackout[0]", "is no window such as"),
            ("a day that is none", "{vms: ['*'], blackout: ['Mon-Fry 08:00-18:00']}", ".blackout[0]", "is no window"),
            ("an empty blackout", "{vms: ['*'], blackout: ['08:00-08:00']}", ".blackout[0]", "ends when it begins"),
            ("no time left", "{vms: ['*'], blackout: ['00:00-12:00', '12:00-24:00']}", ".blackout", "leave no time"),
            ("an RPO without a unit", "{vms: ['*'], rpo: 26}", ".rpo", "26 does not match: write it like 26 hours or"),
            ("an RPO in short", "{vms: ['*'], rpo: 26h}", ".rpo", "'26h' does not match: write it like"),
            ("half an RPO", "{vms: ['*'], rpo: {warn_after: 1 day}}", ".rpo", "'error_after' is a required property"),
            (
                "a late warning",
                "{vms: ['*'], rpo: {warn_after: 2 days, error_after: 26 hours}}",
                ".rpo.warn_after",
                "longer than error_after",
            ),
            ("more than always", "{vms: ['*'], slo: 100.1}", ".slo", "100.1 is greater than the maximum of 100"),
            ("no deadline at all", "{vms: ['*'], deadline: 0 hours}", ".deadline", "does not match: write it like"),
            ("a maybe for quiesce", "{vms: ['*'], quiesce: maybe}", ".quiesce", "'maybe' is not one of"),
            ("a drill without a time", "{vms: ['*'], drill: {}}", ".drill", "'every' is a required property"),
            ("an unknown cadence", "{vms: ['*'], verify: {every: month}}", ".verify.every", "'month' does not match"),
            ("zones empty", "{vms: ['*'], zones: []}", ".zones", "should be non-empty"),
            ("an unknown time zone", "{vms: ['*'], timezone: Europe/Bonn}", ".timezone", "no time zone 'Europe/Bonn'"),
            ("half a time zone", "{vms: ['*'], timezone: Europe}", ".timezone", "there is no time zone 'Europe'"),
            ("an empty time zone", "{vms: ['*'], timezone: ''}", ".timezone", "there is no time zone ''"),
            ("a path for a time zone", "{vms: ['*'], timezone: ../passwd}", ".timezone", "there is no time zone"),
            ("a number for a time zone", "{vms: ['*'], timezone: 1}", ".timezone", "is not of type 'string'"),
        ]
    },
    **{
        f"retention with {words}": (
            GOOD + f"policies: {{all: {{vms: ['*'], retention: {retention}}}}}\n",
            f"policies.all.retention{field}",
            problem,
        )
        for words, retention, field, problem in [
            ("nothing in it", "", "", "None is not of type 'object'"),
            ("a misspelt rule", "{keep_dayly: 7}", "", "'keep_dayly' was unexpected"),
            ("a negative count", "{keep_weekly: -1}", ".keep_weekly", "-1 is less than the minimum of 0"),
            ("a word for a count", "{keep_last: all}", ".keep_last", "'all' is not of type 'integer'"),
            ("a yes for a count", "{keep_last: yes}", ".keep_last", "'yes' is not of type 'integer'"),
            ("half a count", "{keep_hourly: 1.5}", ".keep_hourly", "1.5 is not of type 'integer'"),
            ("too high a count", "{keep_yearly: 100001}", ".keep_yearly", "greater than the maximum"),
            ("no full at all", "{minimum_fulls: 0}", ".minimum_fulls", "less than the minimum of 1"),
            ("no backup at all", "{max_backups: 0}", ".max_backups", "less than the minimum of 1"),
            ("a number for a span", "{recovery_window: 14}", ".recovery_window", "14 is not of type 'string'"),
            ("a span in hours", "{recovery_window: 36 hours}", ".recovery_window", "'36 hours' does not match"),
            ("a negative span", "{recovery_window: -1 days}", ".recovery_window", "'-1 days' does not match"),
            ("too long a span", "{recovery_window: 100000 days}", ".recovery_window", "does not match"),
        ]
    },
    "orphans without a unit": (GOOD + "retention: {keep_orphaned: '90'}", "retention.keep_orphaned", "does not match"),
    "orphans null": (GOOD + "retention: {keep_orphaned: }", "retention.keep_orphaned", "is not of type 'string'"),
    "a policy's rule for all": (GOOD + "retention: {keep_daily: 7}", "retention", "'keep_daily' was unexpected"),
    "more than all": (GOOD + "retention: {at_most: {percent: 101}}", "retention.at_most.percent", "greater than"),
    "fewer than none": (GOOD + "retention: {at_most: {backups: -1}}", "retention.at_most.backups", "less than"),
    "a number for at_most": (GOOD + "retention: {at_most: 200}", "retention.at_most", "is not of type 'object'"),
    **{
        f"a channel with {words}": (
            GOOD + f"policies: {{gold: {{vms: ['*']}}}}\nalerts: {{channels: {{ops: {channel}}}}}\n",
            f"alerts.channels.ops{field}",
            problem,
        )
        for words, channel, field, problem in [
            ("no type", "{connection: smtp_ops}", "", "'type' is a required property"),
            ("an unknown type", "{type: fax, connection: fax}", ".type", "'fax' is not one of"),
            ("no connection", "{type: webhook}", "", "'connection' is a required property"),
            ("nobody to tell", "{type: smtp, connection: smtp_ops}", "", "'to' is a required property"),
            (
                "no address",
                "{type: smtp, connection: smtp_ops, to: [ops]}",
                ".to[0]",
                "'ops' does not match: write it like",
            ),
            ("two addresses in one", '{type: smtp, connection: s, to: ["a@b.c, d@e.f"]}', ".to[0]", "does not match"),
            ("a field of another type", "{type: apprise, connection: a, to: [a@b.c]}", "", "'to' was unexpected"),
            (
                "a whole address",
                "{type: webhook, connection: h, endpoint: 'http://a/b'}",
                ".endpoint",
                "does not match",
            ),
            (
                "an unknown severity",
                "{type: apprise, connection: a, severity: info}",
                ".severity",
                "'info' is not one of",
            ),
            (
                "an unknown zone",
                "{type: apprise, connection: a, zones: [north]}",
                ".zones[0]",
                "there is no zone 'north'",
            ),
            (
                "an unknown policy",
                "{type: apprise, connection: a, policies: [b]}",
                ".policies[0]",
                "there is no policy 'b'",
            ),
        ]
    },
    **{
        f"policy: {case}": (GOOD + f"policies: {{p: {{vms: ['*'], {written}}}}}", f"policies.p.{field}", problem)
        for case, written, field, problem in [
            (
                "an unknown compression",
                "compression: lz4",
                "compression",
                "'lz4' is not one of ['none', 'zstd', 'zlib']",
            ),
            ("a yes to compression", "compression: true", "compression", "True is not one of"),
            ("a bandwidth without unit", "bandwidth: 200", "bandwidth", "200 is not of type 'string'"),
            ("a bandwidth of bits", "bandwidth: 200 Mbit/s", "bandwidth", "write it like 200 MiB/s or 1 GiB/s"),
            ("no bandwidth at all", "bandwidth: 0 MiB/s", "bandwidth", "write it like 200 MiB/s or 1 GiB/s"),
            ("half a unit", "bandwidth: 1.5 GiB/s", "bandwidth", "write it like 200 MiB/s or 1 GiB/s"),
            ("null for a bandwidth", "bandwidth: ", "bandwidth", "None is not of type 'string'"),
            ("an unknown level", "verify: {level: none}", "verify.level", "'none' is not one of ['full', 'structure']"),
            ("a level in place of verify", "verify: structure", "verify", "'structure' is not of type 'object'"),
        ]
    },
    "no slot on a host": (
        "zones: {east: {hosts: [k], repositories: [n], host_slots: 0}}",
        "zones.east.host_slots",
        "0 is less than the minimum of 1",
    ),
    "a warning at nothing": (GOOD + "capacity: {warn_percent: 0}", "capacity.warn_percent", "less than the minimum"),
    "a warning in the past": (GOOD + "capacity: {warn_days: -1}", "capacity.warn_days", "less than the minimum"),
    "an unknown warning": (GOOD + "capacity: {warn_gib: 9}", "capacity", "'warn_gib' was unexpected"),
}


@pytest.mark.parametrize(("text", "field", "problem"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, text: str | bytes, field: str, problem: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(FleetInvalid) as refused:
        load(file)
    assert refused.value.data["file"] == file
    assert problem in refused.value.data["problem"]
    assert refused.value.data["problem"]
    if field.startswith("line "):
        assert refused.value.data["line"] == int(field.removeprefix("line "))
    elif field:
        assert refused.value.data["field"] == field
    place = str(file) if refused.value.data["line"] is None else f"{file}, line {refused.value.data['line']}"
    assert str(refused.value).startswith(f"{place}: {refused.value.data['field']}: ")
    assert "\n" not in str(refused.value)


def test_a_missing_file_says_how_to_set_its_place(tmp_path: Path) -> None:
    with pytest.raises(FleetInvalid, match=r"No such file or directory .*\$NASBACKUP_FLEET"):
        load(tmp_path / "nowhere.yaml")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FleetInvalid, match="Is a directory"):
        load(tmp_path)


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
    "text",
    [
        "retention:\n  keep_orphaned: |\n    90 days\n",  # a block ends with a line feed, which the schema lets pass
        "retention: {keep_orphaned: '\u0669\u0660 days'}",  # digits, but none that Span knows
        "policies: {all: {vms: [2026-13-01]}}",  # YAML takes it for a date
    ],
    ids=["a block", "other digits", "no date"],
)
def test_what_the_schema_lets_pass_is_refused_as_well(tmp_path: Path, text: str) -> None:
    with pytest.raises(FleetInvalid):
        load(written(tmp_path, GOOD + text))


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


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"keep_daily": "7"}, "keep_daily: '7' is not of type 'integer'"),
        ({"recovery_window": "soon"}, "recovery_window: 'soon' does not match"),
        ({"keep": 1}, "'keep' was unexpected"),
        ([7], "is not of type 'object'"),
    ],
)
def test_bad_rules_of_one_run_are_refused_with_the_params_name(document: Any, problem: str) -> None:
    with pytest.raises(ParamInvalid) as refused:
        retention_rules(document, named="retention")
    assert str(refused.value).startswith("Param retention is ")
    assert problem in str(refused.value)


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


# --- where it is wrong, and what else a policy promises ---------------------------------------------------------------

PROMISE = """
zones:
  east: {hosts: [kvm_one], repositories: [nas_main, nas_spare], host_slots: 3}
policies:
  gold:
    titles: ["Database *"]
    metadata: {"http://example.org/tier": "gold*"}
    timezone: Europe/Berlin
    schedule: ["0 1 * * *", "0 13 * * 1-5"]
    blackout: ["Mon-Fri 08:00-12:00"]
    repository: nas_spare
    rpo: {warn_after: 14 hours, error_after: 26 hours}
    slo: 99.9
    deadline: 4 hours
    quiesce: off
    compression: zstd
    bandwidth: 200 MiB/s
    verify: {level: structure, every: 30 days}
    drill: {every: 12 weeks}
  silver: {vms: ["*"], rpo: 2 days}
alerts:
  channels:
    ops: {type: smtp, connection: smtp_ops, to: [ops@example.org], severity: critical, policies: [gold]}
    chat: {type: apprise, connection: chat}
"""


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
    assert (fleet.zones[0].host_slots, fleet.zones[0].repository_slots) == (3, 8)
    assert fleet.repository_of(gold, host="kvm_one") == "nas_spare"
    assert fleet.repository_of(silver, host="kvm_one") == "nas_main"
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
    ("text", "line"),
    [
        (PROMISE.replace("deadline: 4 hours", "deadline: soon"), 14),
        (PROMISE.replace('"0 13 * * 1-5"', "late"), 9),
        (PROMISE.replace("to: [ops@example.org]", "to: [ops]"), 23),
        (PROMISE.replace("silver: {vms: [", "silver: {vns: ["), 20),
        (PROMISE.replace("hosts: [kvm_one]", "hosts: []"), 3),
    ],
)
def test_the_line_is_named(tmp_path: Path, text: str, line: int) -> None:
    file = written(tmp_path, text)
    with pytest.raises(FleetInvalid) as refused:
        load(file)
    assert str(refused.value).startswith(f"{file}, line {line}: ")


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
