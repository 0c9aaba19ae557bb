"""One look at the fleet: real libvirt is asked, a real catalog judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import pytest
from nasbackup import layout
from nasbackup.catalog import Cursor, Database, capacity, inventory, looks, repositories, restore_points, vms
from nasbackup.fleet import Fleet, load
from nasbackup.hypervisor import connect
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.model import Host, Repository, RepositoryType, SeenVm, VmState
from nasbackup.nas import repository as nas_repository
from nasbackup.retention.capacity import Sample, Thresholds
from nasbackup.sla.findings import Kind, Severity
from nasbackup.sla.verdict import Status
from nasbackup.steps.look import Look, in_short, look
from nasbackup.steps.measure import measure_hourly
from nasbackup.steps.ticket import Store

from lab import vm as lab

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TIER = "http://example.org/tier"

FLEET = f"""
zones:
  east: {{hosts: [kvm_one, kvm_two], repositories: [nas_one]}}
policies:
  gold: {{metadata: {{"{TIER}": gold}}, rpo: 2 hours, verify: {{every: 30 days}}, drill: {{every: 30 days}}}}
  named: {{titles: ["Mail *"], rpo: 2 days}}
  standard: {{vms: ["i-2-*"], rpo: {{warn_after: 14 hours, error_after: 26 hours}}}}
capacity: {{warn_percent: 80}}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    return load(file)


@pytest.fixture
def catalog(database: Database) -> Database:
    with database.transaction() as cursor:
        repository = Repository(name="nas_one", type=RepositoryType.LOCAL, path="/mnt/nas_one")
        repositories.register(cursor, repository=repository, uuid=str(uuid4()))
    return database


def seen(name: str, *, host: str = "kvm_one", **changed: Any) -> SeenVm:
    number = int(name.split("-")[2]) if name.startswith("i-2-") else 99
    vm = SeenVm(name=name, uuid=f"00000000-0000-4000-8000-{number:012}", host=host, state=VmState.RUNNING)
    return replace(vm, **changed)


def backed_up(
    database: Database,
    vm: SeenVm,
    *,
    at: datetime,
    parent: int | None = None,
    status: str = "BackedUp",
    changed: int = 1 << 20,
    verified: datetime | None = NOW,
    sizes: dict[str, int] | None = None,
) -> int:
    """A backup in the catalog; returns its number."""
    kind = "FULL" if parent is None else "INCREMENTAL"
    with database.transaction() as cursor:
        vms.register_if_unknown(cursor, uuid=vm.uuid, name=vm.name, host=vm.host)
        cursor.execute("UPDATE vm SET first_seen_at = least(first_seen_at, %s) WHERE uuid = %s", (NOW, vm.uuid))
        cursor.execute(
            """
            INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_position,
                                parent_id, host, vm_state, request, run_id, lease_token, created_at, recorded_at, size,
                                error)
            SELECT vm_id, 1, %(id)s, %(kind)s, %(status)s, 'incremental', '', %(position)s, %(parent)s, host, 'running',
                   '{}', '', 1, %(at)s, %(at)s, 10, CASE WHEN %(status)s = 'Failed' THEN 'it rained' END
              FROM vm WHERE uuid = %(uuid)s RETURNING backup_id
            """,
            {
                "id": f"{vm.name}/{at:%Y.%m.%d.%H.%M.%S}",
                "kind": kind,
                "position": 0 if parent is None else 1,
                "status": status,
                "parent": parent,
                "at": at,
                "uuid": vm.uuid,
            },
        )
        row = cursor.fetchone()
        assert row is not None
        for ordinal, (source, size) in enumerate((sizes or {"/images/a": 1 << 30}).items()):
            cursor.execute(
                "INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,"
                " reason, backing, bytes_read, verified_at) VALUES (%s, %s, %s, %s, 'vda', 'qcow2', %s, %s, %s, '', %s,"
                " %s, %s)",
                (
                    row["backup_id"],
                    ordinal,
                    source,
                    source,
                    source,
                    size,
                    kind,
                    None if parent is None else "../x",
                    changed,
                    verified,
                ),
            )
        return int(row["backup_id"])


def rows(database: Database, statement: str, *values: Any) -> list[dict[str, Any]]:
    with database.transaction() as cursor:
        cursor.execute(statement, values)
        return [dict(row) for row in cursor.fetchall()]


def statuses(database: Database) -> dict[str, str]:
    return {
        row["name"]: row["status"]
        for row in rows(database, "SELECT name, status FROM sla_status JOIN vm USING (vm_id)")
    }


def kinds(found: Look) -> dict[str, set[Kind]]:
    named: dict[str, set[Kind]] = {}
    for finding in found.findings:
        named.setdefault(finding.subject.label, set()).add(finding.kind)
    return named


# --- the hosts ------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(libvirt_connection: Any, vm_name: str) -> Iterator[lab.LabVm]:
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=[lab.Volume(size=1 << 20)], start=False) as machine:
        yield machine


def test_a_host_tells_titles_and_metadata_of_its_vms(machine: lab.LabVm) -> None:
    config = libvirt.VIR_DOMAIN_AFFECT_CONFIG
    machine.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "Mail <1> & more", None, None, config)
    element = "<tier><word>gold</word>\n  <word>plus</word></tier>"
    machine.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, "t", TIER, config)

    def me() -> SeenVm:
        with connect(Host(name="kvm_test")) as hypervisor:
            return next(vm for vm in seen_vms(hypervisor) if vm.name == machine.name)

    assert me() == SeenVm(
        name=machine.name,
        uuid=machine.uuid,
        host="kvm_test",
        state=VmState.STOPPED,
        title="Mail <1> & more",
        metadata={TIER: "gold plus"},
    )
    machine.start()
    assert me().state is VmState.RUNNING
    machine.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<apart/>", "n", layout.APART, config)
    with connect(Host(name="kvm_test")) as hypervisor:
        assert machine.name not in {vm.name for vm in seen_vms(hypervisor)}  # a drill's is nobody's to back up


def test_every_vm_is_judged_by_its_policy(catalog: Database, fleet: Fleet) -> None:
    gold = seen("i-2-1-VM", metadata={TIER: "gold"})
    mail = seen("i-2-2-VM", title="Mail 1")
    fresh, old, new = seen("i-2-3-VM"), seen("i-2-4-VM"), seen("i-2-5-VM")
    stranger = seen("other", host="kvm_two")
    for vm, age in ((gold, 3 * HOUR), (mail, 40 * HOUR), (fresh, HOUR), (old, 27 * HOUR)):
        backed_up(catalog, vm, at=NOW - age)
    found = look(
        catalog,
        fleet=fleet,
        seen={"kvm_one": [gold, mail, fresh, old, new], "kvm_two": [stranger]},
        now=NOW,
    )
    assert statuses(catalog) == {
        "i-2-1-VM": "critical",
        "i-2-2-VM": "ok",
        "i-2-3-VM": "ok",
        "i-2-4-VM": "critical",
        "i-2-5-VM": "ok",  # it was not there a moment ago
        "other": "unprotected",
    }
    assert found.statuses == {Status.OK: 3, Status.CRITICAL: 2, Status.UNPROTECTED: 1}
    assert kinds(found) == {"i-2-1-VM": {Kind.STALE}, "i-2-4-VM": {Kind.STALE}, "other": {Kind.UNPROTECTED}}
    assert {subject.label for subject in found.subjects} == {
        *(vm.name for vm in (gold, mail, fresh, old, new, stranger)),
        "kvm_one",
        "kvm_two",
    }
    (row,) = rows(catalog, "SELECT s.* FROM sla_status s JOIN vm USING (vm_id) WHERE name = 'i-2-1-VM'")
    assert (row["policy"], row["zone"], row["checked_at"]) == ("gold", "east", NOW)
    assert (row["newest_at"], row["warn_seconds"], row["error_seconds"]) == (NOW - 3 * HOUR, 7200, 7200)
    assert (row["backups"], row["size"]) == (1, 10)
    (problem,) = row["problems"]
    assert problem["kind"] == "stale"
    assert problem["text"].startswith("The newest restorable backup of i-2-1-VM is 3 hours old;")


def test_only_restorable_backups_count(catalog: Database, fleet: Fleet) -> None:
    vm = seen("i-2-1-VM")
    good = backed_up(catalog, vm, at=NOW - 27 * HOUR)
    backed_up(catalog, vm, at=NOW - 3 * HOUR, parent=good, status="Failed")
    backed_up(catalog, vm, at=NOW - 2 * HOUR, parent=good, status="Failed")
    backed_up(catalog, vm, at=NOW - HOUR, parent=good, status="BackingUp")
    found = look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)
    assert kinds(found) == {vm.name: {Kind.STALE, Kind.FAILING}}
    (failing,) = [finding for finding in found.findings if finding.kind is Kind.FAILING]
    assert failing.text == "The last 2 backups of i-2-1-VM failed, the last one because it rained."


def test_what_changed_and_the_volumes_are_read_of_the_last_backups(catalog: Database, fleet: Fleet) -> None:
    vm = seen("i-2-1-VM")
    parent = backed_up(catalog, vm, at=NOW - 12 * HOUR)
    for ago in range(10, 2, -1):
        parent = backed_up(catalog, vm, at=NOW - ago * HOUR, parent=parent)
    two = {"/images/a": 1 << 30, "/images/b": 1 << 20}
    backed_up(catalog, vm, at=NOW - HOUR, parent=parent, changed=1 << 30, sizes=two)
    found = look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)
    assert kinds(found) == {vm.name: {Kind.CHANGE_SPIKE, Kind.VOLUMES_CHANGED}}
    texts = {finding.kind: finding.text for finding in found.findings}
    assert texts[Kind.CHANGE_SPIKE].startswith("2 GiB of i-2-1-VM changed")
    assert "/images/b came." in texts[Kind.VOLUMES_CHANGED]


def test_the_layer_that_was_read_back_the_longest_ago_counts(catalog: Database, fleet: Fleet) -> None:
    vm = seen("i-2-1-VM", metadata={TIER: "gold"})
    full = backed_up(catalog, vm, at=NOW - 3 * HOUR, verified=NOW - timedelta(days=31))
    backed_up(catalog, vm, at=NOW - HOUR, parent=full)
    assert kinds(look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)) == {vm.name: {Kind.NOT_VERIFIED}}
    rows(catalog, "UPDATE backup_volume SET verified_at = %s RETURNING 1", NOW - timedelta(days=29))
    assert kinds(look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)) == {}
    rows(catalog, "UPDATE backup_volume SET verified_at = NULL WHERE backup_id = %s RETURNING 1", full)
    assert kinds(look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)) == {vm.name: {Kind.NOT_VERIFIED}}


def test_what_the_newest_backup_is_not_made_of_needs_no_reading(catalog: Database, fleet: Fleet) -> None:
    """A volume that is full inside an incremental stands on nothing; one that went away is of no interest."""
    vm = seen("i-2-1-VM", metadata={TIER: "gold"})
    two = {"/images/a": 1 << 30, "/images/b": 1 << 20, "/images/c": 1 << 20}
    full = backed_up(catalog, vm, at=NOW - 90 * timedelta(minutes=1), verified=None, sizes=two)
    newest = backed_up(catalog, vm, at=NOW - HOUR, parent=full, sizes={"/images/a": 1 << 30, "/images/b": 1 << 20})
    look_now = lambda: kinds(look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW))[vm.name]  # noqa: E731
    assert Kind.NOT_VERIFIED in look_now()
    again = "UPDATE backup_volume SET verified_at = %s WHERE backup_id = %s AND name = '/images/a' RETURNING 1"
    rows(catalog, again, NOW, full)
    assert Kind.NOT_VERIFIED in look_now(), "b is built on a layer that nobody has read"
    change = (
        "UPDATE backup_volume SET type = 'FULL', backing = NULL WHERE backup_id = %s AND name = '/images/b' RETURNING 1"
    )
    rows(catalog, change, newest)
    assert Kind.NOT_VERIFIED not in look_now()


def test_drills_are_remembered(catalog: Database, fleet: Fleet) -> None:
    vm = seen("i-2-1-VM", metadata={TIER: "gold"})
    backup = backed_up(catalog, vm, at=NOW - HOUR)
    rows(catalog, "UPDATE vm SET first_seen_at = %s RETURNING 1", NOW - timedelta(days=40))

    def drilled(result: str, at: datetime) -> None:
        rows(
            catalog,
            "INSERT INTO drill (vm_id, backup_id, external_id, started_at, finished_at, result, rto_seconds, how,"
            " detail) SELECT vm_id, %s, 'x', %s, %s, %s, 5, 'console', 'no answer' FROM vm RETURNING 1",
            backup,
            at,
            at,
            result,
        )

    found = {"kvm_one": [vm]}
    assert kinds(look(catalog, fleet=fleet, seen=found, now=NOW)) == {vm.name: {Kind.NOT_DRILLED}}
    drilled("ok", NOW - timedelta(days=20))
    assert kinds(look(catalog, fleet=fleet, seen=found, now=NOW)) == {}
    drilled("failed", NOW - timedelta(days=1))
    assert kinds(look(catalog, fleet=fleet, seen=found, now=NOW)) == {vm.name: {Kind.DRILL_FAILED}}
    drilled("ok", NOW)
    assert kinds(look(catalog, fleet=fleet, seen=found, now=NOW)) == {}


# --- hosts that come and go -----------------------------------------------------------------------------------


def test_vms_of_a_host_that_does_not_answer_grow_old_all_the_same(catalog: Database, fleet: Fleet) -> None:
    vm = seen("i-2-1-VM")
    backed_up(catalog, vm, at=NOW - HOUR)
    look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)
    silent = "Host kvm_one does not answer."
    found = look(catalog, fleet=fleet, seen={"kvm_one": silent}, now=NOW + 26 * HOUR)
    assert kinds(found) == {vm.name: {Kind.STALE}, "kvm_one": {Kind.HOST_SILENT}}
    (about_host,) = [finding for finding in found.findings if finding.kind is Kind.HOST_SILENT]
    assert (about_host.text, about_host.severity) == (silent, Severity.CRITICAL)


def test_a_vm_that_is_undefined_is_judged_no_more(catalog: Database, fleet: Fleet) -> None:
    vm = seen("i-2-1-VM")
    backed_up(catalog, vm, at=NOW - 90 * HOUR)
    assert kinds(look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)) == {vm.name: {Kind.STALE}}
    found = look(catalog, fleet=fleet, seen={"kvm_one": []}, now=NOW)
    assert (found.findings, statuses(catalog)) == ([], {})
    assert kinds(look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)) == {vm.name: {Kind.STALE}}


def test_a_vm_is_where_it_runs(catalog: Database, fleet: Fleet) -> None:
    here = seen("i-2-1-VM", host="kvm_one")
    left_behind = replace(here, host="kvm_two", state=VmState.STOPPED)

    def host() -> str:
        return str(rows(catalog, "SELECT host FROM vm")[0]["host"])

    look(catalog, fleet=fleet, seen={"kvm_one": [here], "kvm_two": [left_behind]}, now=NOW)
    assert host() == "kvm_one"
    gone = replace(here, state=VmState.STOPPED)
    look(catalog, fleet=fleet, seen={"kvm_one": [gone], "kvm_two": [replace(here, host="kvm_two")]}, now=NOW)
    assert host() == "kvm_two"
    look(catalog, fleet=fleet, seen={"kvm_one": [], "kvm_two": [left_behind]}, now=NOW)
    assert host() == "kvm_two"
    assert statuses(catalog) == {"i-2-1-VM": "ok"}


def test_a_definition_that_nobody_has_seen_for_a_week_gives_way(catalog: Database, fleet: Fleet) -> None:
    """Its host does not answer: what another defines, although stopped, is the VM, and is judged."""
    there = seen("i-2-1-VM", host="kvm_two")
    here = replace(there, host="kvm_one", state=VmState.STOPPED)
    look(catalog, fleet=fleet, seen={"kvm_two": [there]}, now=NOW)
    look(catalog, fleet=fleet, seen={"kvm_one": [here], "kvm_two": "silent"}, now=NOW + timedelta(days=6))
    assert where(catalog) == ("kvm_two", True), "this look is at that host, whatever was before it"
    look(catalog, fleet=fleet, seen={"kvm_one": [here], "kvm_two": "silent"}, now=NOW + timedelta(days=8))
    assert where(catalog) == ("kvm_one", True)


def test_a_definition_on_a_host_that_nobody_looks_at_gives_way_after_an_hour(catalog: Database, fleet: Fleet) -> None:
    """Its host went from fleet.yaml, or its Connection has another name: what is here, although stopped, is the VM."""
    there = seen("i-2-1-VM", host="kvm_gone")
    here = replace(there, host="kvm_one", state=VmState.STOPPED)
    with catalog.transaction() as cursor:
        inventory.note_seen(cursor, host="kvm_gone", seen=[there], now=NOW)
        looks.note(cursor, hosts=["kvm_gone"], now=NOW)
    look(catalog, fleet=fleet, seen={"kvm_one": [here]}, now=NOW + timedelta(minutes=55))
    assert where(catalog) == ("kvm_gone", True), "another fleet's watch may look at it"
    look(catalog, fleet=fleet, seen={"kvm_one": [here]}, now=NOW + HOUR)
    assert where(catalog) == ("kvm_one", True)
    assert statuses(catalog) == {"i-2-1-VM": "ok"}


def where(database: Database) -> tuple[str, bool]:
    ((host, defined),) = (row.values() for row in rows(database, "SELECT host, defined FROM vm"))
    return host, defined


def test_a_host_that_went_from_fleet_yaml_is_found_while_nobody_looks_at_its_vms(
    catalog: Database, fleet: Fleet
) -> None:
    one, two = seen("i-2-1-VM", host="kvm_gone"), seen("i-2-2-VM", host="kvm_gone")
    with_it = replace(fleet, zones=tuple(replace(zone, hosts=(*zone.hosts, "kvm_gone")) for zone in fleet.zones))
    look(catalog, fleet=with_it, seen={"kvm_gone": [one, two]}, now=NOW)
    assert kinds(look(catalog, fleet=fleet, seen={}, now=NOW + timedelta(minutes=55))) == {}, "an hour's patience"
    found = look(catalog, fleet=fleet, seen={}, now=NOW + 2 * HOUR)
    assert kinds(found) == {"kvm_gone": {Kind.HOST_DROPPED}}
    assert found.subjects == set(), "whether it answers is not known: its other alerts stay"
    assert "VMs were last seen on it (their number: 2), 2 hours ago" in found.findings[0].text
    silent = look(catalog, fleet=with_it, seen={"kvm_gone": "it does not answer."}, now=NOW + 3 * HOUR)
    assert kinds(silent)["kvm_gone"] == {Kind.HOST_SILENT}
    assert kinds(look(catalog, fleet=fleet, seen={}, now=NOW + 3 * HOUR)) == {}, "another fleet looks at them"
    look(catalog, fleet=fleet, seen={"kvm_one": [replace(one, host="kvm_one")]}, now=NOW + 5 * HOUR)
    (left,) = look(catalog, fleet=fleet, seen={}, now=NOW + 5 * HOUR).findings
    assert (left.kind, "(their number: 1)" in left.text) == (Kind.HOST_DROPPED, True), "one has moved"
    assert kinds(look(catalog, fleet=fleet, seen={}, now=NOW + timedelta(days=8))) == {
        "i-2-1-VM": {Kind.NEVER_BACKED_UP}
    }


def test_a_backup_from_the_future_is_not_the_newest_for_ever(catalog: Database, fleet: Fleet) -> None:
    """A worker's clock was ten years ahead: the backup is found to be of no known age, until the next one."""
    vm = seen("i-2-1-VM", metadata={TIER: "gold"})
    now = {"kvm_one": [vm]}
    backed_up(catalog, vm, at=NOW + timedelta(days=3652), verified=None)
    found = look(catalog, fleet=fleet, seen=now, now=NOW)
    assert kinds(found) == {vm.name: {Kind.STALE, Kind.NOT_VERIFIED}}
    assert statuses(catalog) == {vm.name: "critical"}
    backed_up(catalog, vm, at=NOW - HOUR)
    assert kinds(look(catalog, fleet=fleet, seen=now, now=NOW)) == {}
    assert kinds(look(catalog, fleet=fleet, seen=now, now=NOW + 2 * HOUR)) == {vm.name: {Kind.STALE}}


def test_a_renamed_vm_keeps_its_history(catalog: Database, fleet: Fleet) -> None:
    vm = seen("i-2-1-VM")
    backed_up(catalog, vm, at=NOW - 27 * HOUR)
    renamed = replace(vm, name="i-2-1-NEW")
    found = look(catalog, fleet=fleet, seen={"kvm_one": [renamed]}, now=NOW)
    assert kinds(found) == {"i-2-1-NEW": {Kind.STALE}}


# --- over time ------------------------------------------------------------------------------------------------


def test_compliance_is_counted_a_day_and_a_policy_at_a_time(catalog: Database, fleet: Fleet) -> None:
    good, bad, other = seen("i-2-1-VM"), seen("i-2-2-VM"), seen("other")
    backed_up(catalog, good, at=NOW - HOUR)
    backed_up(catalog, bad, at=NOW - 30 * HOUR)
    for minute in (0, 5, 10):
        look(catalog, fleet=fleet, seen={"kvm_one": [good, bad, other]}, now=NOW + timedelta(minutes=minute))
    look(catalog, fleet=fleet, seen={"kvm_one": [good, bad, other]}, now=NOW + timedelta(days=1))
    days = rows(
        catalog,
        "SELECT day::text, name, policy, looks, compliant FROM sla_day JOIN vm USING (vm_id) ORDER BY day, name",
    )
    assert [tuple(row.values()) for row in days] == [
        ("2026-11-25", "i-2-1-VM", "standard", 3, 3),
        ("2026-11-25", "i-2-2-VM", "standard", 3, 0),
        ("2026-11-26", "i-2-1-VM", "standard", 1, 1),
        ("2026-11-26", "i-2-2-VM", "standard", 1, 0),
    ]
    totals = rows(catalog, "SELECT day::text, policy, looks, compliant FROM sla_policy_day ORDER BY day")
    assert [tuple(row.values()) for row in totals] == [
        ("2026-11-25", "standard", 6, 3),
        ("2026-11-26", "standard", 2, 1),
    ]
    look(catalog, fleet=fleet, seen={"kvm_one": [good]}, now=NOW + timedelta(days=401))
    assert {row["day"] for row in rows(catalog, "SELECT day::text FROM sla_day")} == {"2026-11-26", "2027-12-31"}


def test_a_repository_that_fills_up_is_found(catalog: Database, fleet: Fleet) -> None:
    found = look(catalog, fleet=fleet, seen={}, now=NOW)
    assert found.subjects == set()  # nobody has measured it yet: neither good nor bad
    with catalog.transaction() as cursor:
        sample = Sample(measured_at=NOW, total=100, free=19, backups=10)
        capacity.add_sample(cursor, repository="nas_one", sample=sample)
    (finding,) = look(catalog, fleet=fleet, seen={}, now=NOW).findings
    assert finding.kind is Kind.REPOSITORY_FILLING
    assert finding.text == "Repository nas_one is filling up: 81 % is used (warn_percent: 80)."


def test_how_full_a_repository_was_long_ago_is_not_how_full_it_is(catalog: Database, fleet: Fleet) -> None:
    with catalog.transaction() as cursor:
        capacity.add_sample(cursor, repository="nas_one", sample=Sample(measured_at=NOW, total=100, free=19, backups=1))
    found = look(catalog, fleet=fleet, seen={}, now=NOW + 25 * HOUR)
    assert kinds(found) == {"nas_one": {Kind.REPOSITORY_FILLING}}
    found = look(catalog, fleet=fleet, seen={}, now=NOW + 60 * 24 * HOUR)
    assert kinds(found) == {"nas_one": {Kind.REPOSITORY_FILLING, Kind.REPOSITORY_SILENT}}, (
        "the one does not end the other"
    )
    assert found.findings[1].text == (
        "How full repository nas_one is, nobody knows: it was last measured on 2026-11-25 12:00 UTC."
    )


def test_repositories_are_measured_once_an_hour(catalog: Database, fleet: Fleet, tmp_path: Path) -> None:
    """By whichever fleet's watch comes first. One that cannot be measured is found with the reason, but not at once."""
    place = Repository(name="nas_two", type=RepositoryType.LOCAL, path=str(tmp_path / "nas"))
    Path(place.path).mkdir()
    with catalog.transaction() as cursor:
        repositories.register(cursor, repository=place, uuid=nas_repository.register(place))
    stores = {
        "nas_two": lambda: Store(database=catalog, repository=place),
        "unknown": lambda: Store(database=catalog, repository=replace(place, name="unknown")),
    }

    def measured(now: datetime) -> tuple[list[str], list[datetime], set[Kind]]:
        asked = measure_hourly(catalog, stores=stores, now=now)
        with catalog.transaction() as cursor:
            samples = capacity.samples(cursor, repository="nas_two")
        assert all(0 < sample.free <= sample.total for sample in samples)
        zone = replace(fleet.zones[0], repositories=("nas_two",))
        roomy = replace(fleet, zones=(zone,), capacity=Thresholds(warn_percent=101, warn_days=0))
        return (
            asked,
            [sample.measured_at for sample in samples],
            kinds(look(catalog, fleet=roomy, seen={}, now=now)).get("nas_two", set()),
        )

    def an_hour_later() -> None:
        rows(catalog, "UPDATE repository SET measure_asked_at = measure_asked_at - interval '1 hour' RETURNING 1")

    assert measured(NOW) == (["nas_two"], [NOW], set())
    assert measured(NOW + HOUR) == ([], [NOW], set()), "the database's clock counts, whatever that of a worker says"
    an_hour_later()
    (tmp_path / "nas").rename(tmp_path / "away")
    assert measured(NOW + HOUR) == (["nas_two"], [NOW], set()), "it may be back soon"
    found = measured(NOW + 4 * HOUR)
    assert found == ([], [NOW], {Kind.REPOSITORY_SILENT})
    with catalog.transaction() as cursor:
        assert str(tmp_path / "nas") in str(capacity.failure(cursor, repository="nas_two"))
    (tmp_path / "away").rename(tmp_path / "nas")
    an_hour_later()
    assert measured(NOW + 5 * HOUR) == (["nas_two"], [NOW, NOW + 5 * HOUR], set())
    rows(catalog, "UPDATE repository SET measure_asked_at = now() + interval '10 years' RETURNING 1")
    assert measured(NOW + 6 * HOUR)[0] == ["nas_two"], "a clock was wrong"


def test_measurements_of_each_hour_become_one_a_day(catalog: Database) -> None:
    def note(at: datetime) -> list[datetime]:
        with catalog.transaction() as cursor:
            sample = Sample(measured_at=at, total=100, free=50, backups=1)
            capacity.add_sample(cursor, repository="nas_one", sample=sample)
            return [found.measured_at for found in capacity.samples(cursor, repository="nas_one", now=ever)]

    ever = datetime.now(UTC) + timedelta(days=9999)
    today = datetime.now(UTC).replace(hour=1, minute=0, second=0, microsecond=0)
    old, recent = ([today - timedelta(days=ago) + hour * HOUR for hour in range(5)] for ago in (40, 20))
    for at in [*old, *recent]:
        kept = note(at)
    assert kept == [*old, *recent]
    wrong = today + timedelta(days=3652)
    assert note(wrong) == [old[0], *recent, wrong], "a clock that is wrong takes no history away"
    assert note(today - timedelta(days=3652))[1:] == [old[0], *recent], "nor does one that is late"
    note(wrong)
    assert note(today) == [old[0], *recent, today], "with the next measurement goes what such clocks have dated"


def test_a_storm_of_findings_is_a_few_lines_of_a_log(catalog: Database, fleet: Fleet) -> None:
    strangers = [seen("other", uuid=str(uuid4())) for _ in range(50)]
    stale = seen("i-2-1-VM")
    backed_up(catalog, stale, at=NOW - 40 * HOUR)
    lines = list(in_short(look(catalog, fleet=fleet, seen={"kvm_one": [*strangers, stale]}, now=NOW).findings))
    assert lines[0].startswith("critical, stale: The newest restorable backup of i-2-1-VM is ")
    assert [line.startswith("warning, unprotected: No policy") for line in lines[1:-1]] == [True] * 10
    assert lines[-1] == "unprotected: 40 more of 50; `nasbackup alerts` lists what is open"


def test_retention_sees_title_and_metadata_too(catalog: Database, fleet: Fleet) -> None:
    vm = seen("db", metadata={TIER: "gold"}, title="Mail")
    look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)

    def known(cursor: Cursor) -> Any:
        (found,) = restore_points.known_vms(cursor)
        return found.title, found.metadata

    with catalog.transaction() as cursor:
        assert known(cursor) == ("Mail", {TIER: "gold"})
