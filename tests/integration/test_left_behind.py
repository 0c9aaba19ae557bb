"""decide_chain on a host where a migration left only the definition and an old image of the VM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from nasbackup.catalog import Database, inventory, looks
from nasbackup.errors import VmElsewhere
from nasbackup.hypervisor import connect
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.model import Mode, VmState
from nasbackup.settings import Settings
from nasbackup.steps import BackupRequest, Site, decide_chain, end_job

from lab import vm as lab


@pytest.fixture
def machine(libvirt_connection: Any, vm_name: str) -> Iterator[lab.LabVm]:
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=[lab.Volume(size=1 << 20)], start=False) as machine:
        yield machine


def state_of(database: Database) -> list[tuple[str, int]]:
    """Where the VM is, and how many backups were begun."""
    with database.reading() as cursor:
        cursor.execute("SELECT host, (SELECT count(*) FROM backup) AS backups FROM vm")
        return [(row["host"], row["backups"]) for row in cursor.fetchall()]


def test_what_a_migration_left_behind_is_backed_up_only_when_that_is_asked_for(
    site: Site, machine: lab.LabVm, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(site.host) as hypervisor:
        here = next(vm for vm in seen_vms(hypervisor) if vm.name == machine.name)
    with site.database.transaction() as cursor:
        there = replace(here, host="kvm_elsewhere", state=VmState.RUNNING)
        inventory.note_seen(cursor, host="kvm_elsewhere", seen=[there], now=datetime.now(UTC))
        looks.note(cursor, hosts=["kvm_elsewhere"], now=datetime.now(UTC))
    request = BackupRequest(vm=machine.name)
    for _ in range(2):
        with pytest.raises(VmElsewhere, match=r"is stopped on host kvm_test.* last saw it on host kvm_elsewhere"):
            decide_chain(site, request=request, settings=Settings(), run_id="run")
    assert state_of(site.database) == [("kvm_elsewhere", 0)], "it is refused before anything is written"

    ticket, _ = decide_chain(site, request=replace(request, mode=Mode.FULL), settings=Settings(), run_id="by hand")
    assert "what is here is backed up, since a full was asked for" in caplog.text
    assert state_of(site.database) == [("kvm_test", 1)]
    end_job(site, ticket=ticket, why_failed="this test ends here")
