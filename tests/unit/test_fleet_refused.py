"""fleet.yaml: a wrong file is refused with file, place and sentence, and so are wrong rules of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nasbackup.errors import FleetInvalid, ParamInvalid
from nasbackup.fleet import load, retention_rules

from tests.unit.fleets import GOOD, PROMISE, written

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
    "a word for spread": (
        "zones: {east: {hosts: [k], repositories: [n, m], spread: on}}",
        "zones.east.spread",
        "'on' is not of type 'boolean'",
    ),
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
