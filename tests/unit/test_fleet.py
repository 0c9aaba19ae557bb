"""fleet.yaml: a good file is read as it is; a bad one is refused with file, place and sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.errors import FleetInvalid, ParamInvalid, UnknownHost, UnknownPolicy
from nasbackup.fleet import DEFAULT_PATH, ENVIRONMENT, Fleet, Zone, load, path, retention_rules
from nasbackup.retention.capacity import Thresholds
from nasbackup.retention.rules import Guard, Policy, RetentionRules, Span, Unprotected

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
            ("no vms", "{zones: [east]}", "", "'vms' is a required property"),
            ("vms empty", "{vms: []}", ".vms", "should be non-empty"),
            ("vms a word", "{vms: '*'}", ".vms", "is not of type 'array'"),
            ("an empty glob", "{vms: ['']}", ".vms[0]", "should be non-empty"),
            ("an unknown key", "{vms: ['*'], keep_daily: 7}", "", "'keep_daily' was unexpected"),
            ("an unknown zone", "{vms: ['*'], zones: [east, north]}", ".zones", "there is no zone 'north'"),
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
            ("a yes for a count", "{keep_last: yes}", ".keep_last", "True is not of type 'integer'"),
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
    if field:
        assert refused.value.data["field"] == field
    assert str(refused.value).startswith(f"{file}: {refused.value.data['field']}: ")
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
        vms=("db-*", "i-2-7-VM"),
        zones=("east",),
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
    assert (policy.zones, policy.timezone) == ((), "UTC")
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
