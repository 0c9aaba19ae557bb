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
from nasbackup.catalog import Cursor, Database, capacity, repositories, restore_points, vms
from nasbackup.fleet import Fleet, load
from nasbackup.hypervisor import connect
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.model import Host, Repository, RepositoryType, SeenVm, VmState
from nasbackup.retention.capacity import Sample
from nasbackup.sla.findings import Kind, Severity
from nasbackup.sla.verdict import Status
from nasbackup.steps.look import Look, look

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


def test_retention_sees_title_and_metadata_too(catalog: Database, fleet: Fleet) -> None:
    vm = seen("db", metadata={TIER: "gold"}, title="Mail")
    look(catalog, fleet=fleet, seen={"kvm_one": [vm]}, now=NOW)

    def known(cursor: Cursor) -> Any:
        (found,) = restore_points.known_vms(cursor)
        return found.title, found.metadata

    with catalog.transaction() as cursor:
        assert known(cursor) == ("Mail", {TIER: "gold"})
