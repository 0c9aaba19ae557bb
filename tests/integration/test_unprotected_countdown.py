"""VMs without a policy, or without a definition: since when, and what a host that is silent changes (nothing)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from nasbackup.catalog import Database, restore_points, vms
from nasbackup.fleet import Fleet, Policy, Selector, Zone
from nasbackup.model import Backup
from nasbackup.retention.rules import RetentionRules, Span, Unprotected
from nasbackup.steps import Site
from nasbackup.steps.retention import Defined, Report, note_unprotected, report

from tests.integration.test_deletion import BEGIN, Vault

DAY = timedelta(days=1)
UNDEFINED = BEGIN + 60 * DAY
NOWHERE: Defined = {"kvm_test": frozenset(), "kvm_two": frozenset()}
ONE_SILENT: Defined = {"kvm_test": frozenset(), "kvm_two": None}


def fleet_of(*hosts: str, vms: Sequence[str] = ("i-2-*",)) -> Fleet:
    keep_one = RetentionRules(keep_last=1)
    return Fleet(
        zones=(Zone(name="default", hosts=hosts, repositories=("nas_test",)),),
        policies=(Policy(name="standard", selector=Selector(vms=tuple(vms)), retention=keep_one),),
        unprotected=Unprotected(keep_orphaned=Span.parse("90 days")),
    )


FLEET = fleet_of("kvm_test", "kvm_two")


@pytest.fixture
def vault(site: Site) -> Vault:
    return Vault(site=site)


def looked(vault: Vault, *, defined: Defined, day: int) -> Report:
    """What one night's run notes and reports, so many days after the VM was undefined."""
    database, now = vault.site.database, UNDEFINED + day * DAY
    note_unprotected(database, fleet=FLEET, defined=defined, now=now)
    return report(database, fleet=FLEET, now=now, defined=defined)


def doomed(found: Report) -> list[str]:
    return [external_id for chain in found.chains for external_id, _ in chain.plan.delete]


def since(database: Database, vm_uuid: str) -> datetime | None:
    with database.transaction() as cursor:
        (vm,) = [vm for vm in restore_points.known_vms(cursor) if vm.vm_uuid == vm_uuid]
    return vm.unprotected_since


def fulls(vault: Vault, number: int) -> list[Backup]:
    return [vault.record(vault.begin()) for _ in range(number)]


def test_a_host_that_is_silent_for_a_night_brings_no_undefined_vm_back(vault: Vault) -> None:
    made = fulls(vault, 3)
    database, names = vault.site.database, [backup.external_id for backup in made]
    assert doomed(looked(vault, defined=NOWHERE, day=0)) == []

    found = looked(vault, defined=ONE_SILENT, day=50)
    assert doomed(found) == [], "not judged by its policy, which would keep one"
    (vm,) = found.unprotected
    assert vm.why == "no host that answers defines it, and one is silent"
    assert vm.goes == f"90 days after {UNDEFINED:%Y-%m-%d}, and not before every host can be asked"
    assert since(database, vault.vm_uuid) == UNDEFINED, "the countdown goes on"

    assert doomed(looked(vault, defined=ONE_SILENT, day=91)) == [], "it may be on the silent one since yesterday"
    found = looked(vault, defined=NOWHERE, day=91)
    assert set(doomed(found)) == set(names)
    assert found.bereft == {vault.vm_uuid: "i-2-1-VM"}
    assert since(database, vault.vm_uuid) == UNDEFINED


def test_a_vm_that_is_defined_again_is_its_policys(vault: Vault) -> None:
    fulls(vault, 3)
    looked(vault, defined=NOWHERE, day=0)
    back: Defined = {"kvm_test": None, "kvm_two": frozenset({vault.vm_uuid})}
    found = looked(vault, defined=back, day=50)
    assert len(doomed(found)) == 2
    assert (found.unprotected, found.bereft) == ([], {})
    assert since(vault.site.database, vault.vm_uuid) is None
    # And one that was never seen to be gone is its policy's while a host is silent.
    assert len(doomed(looked(vault, defined=ONE_SILENT, day=51))) == 2


def test_what_somebody_backs_up_by_hand_stays_for_as_long_as_the_rest_did(vault: Vault) -> None:
    old = fulls(vault, 2)
    database, hidden = vault.site.database, fleet_of("kvm_test", vms=("i-9-*",))
    note_unprotected(database, fleet=hidden, defined={}, now=BEGIN)
    last = vault.record(vault.begin())
    with database.transaction() as cursor:
        cursor.execute("UPDATE backup SET created_at = %s WHERE backup_id = %s", (BEGIN + 100 * DAY, last.backup_id))
    found = report(database, fleet=hidden, now=BEGIN + 101 * DAY)
    assert set(doomed(found)) == {backup.external_id for backup in old}
    assert found.bereft == {}
    found = report(database, fleet=hidden, now=BEGIN + 191 * DAY)
    assert last.external_id in doomed(found)


def test_airflows_that_share_a_catalog_leave_each_others_countdowns_alone(database: Database) -> None:
    mine, others = str(uuid4()), str(uuid4())
    with database.transaction() as cursor:
        vms.register(cursor, uuid=mine, name="i-9-mine", host="kvm_one")
        vms.register(cursor, uuid=others, name="i-9-others", host="kvm_other")
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for day in range(2):
        for host in ("kvm_one", "kvm_other"):
            note_unprotected(database, fleet=fleet_of(host), defined={}, now=begin + day * DAY)
    assert since(database, mine) == since(database, others) == begin
