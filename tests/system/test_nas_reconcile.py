"""``nas_reconcile`` and the second try, under a real scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nasbackup import steps
from nasbackup.airflow.try_again import SUFFIX
from nasbackup.model import BackupStatus, BackupType, Quiesce, VmState
from nasbackup.settings import Settings

from lab.vm import LabVm
from tests.system.conftest import HOUR, Plant, away_from, stopped_copy

pytestmark = pytest.mark.system

MIB = 1 << 20


def test_a_vm_started_in_mid_copy_wins_and_is_backed_up_by_the_second_try(
    plant: Plant, make_vm: Callable[..., LabVm], tmp_path: Path
) -> None:
    machine = make_vm("starts", 200 * MIB)
    machine.guest_io("vda", "write -P 0x11 0 200M")
    machine.destroy()
    run = plant.backup(machine.name)
    with stopped_copy(machine.name, file="root.vda", timeout=120):
        machine.start()  # at once, although its image is being read
        machine.guest_io("vda", "write -P 0x12 0 1M")
    assert plant.wait(run) == "failed"
    first = plant.backups_of(machine.name)[0]
    assert (first.status, first.vm_state) == (BackupStatus.FAILED, VmState.STOPPED)
    assert "was started while" in plant.airflow.log("nas_backup", run, "copy", map_index=0)

    second = plant.recorded(run + SUFFIX)
    assert (second.type, second.vm_state) == (BackupType.FULL, VmState.RUNNING)
    plant.assert_nothing_is_left(machine)
    plant.assert_restores_what_the_guest_has(machine, second, work=tmp_path)


def test_a_run_that_vanished_is_found_listed_and_undone(plant: Plant, make_vm: Callable[..., LabVm]) -> None:
    machine = make_vm("vanished", 8 * MIB)
    plant.recorded(plant.backup(machine.name))
    site = plant.site
    # A worker that got this far, and of which nobody heard again.
    request = steps.BackupRequest(vm=machine.name)
    ticket, _ = steps.decide_chain(site, request=request, settings=Settings(), run_id="nas_backup/vanished")
    steps.checkpoint(site, ticket=ticket, quiesce=Quiesce.OFF)
    assert reconcile(plant, dry_run=False) == {}, "its lease is alive"
    away_from(seconds=120, every=HOUR)
    with plant.database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")
    assert reconcile(plant) == {"undo_backup": "dry run"}
    assert plant.backups_of(machine.name)[-1].status is BackupStatus.BACKING_UP
    assert reconcile(plant, dry_run=False) == {"undo_backup": ""}
    plant.assert_nothing_is_left(machine)
    assert plant.recorded(plant.backup(machine.name)).type is BackupType.INCREMENTAL


def reconcile(plant: Plant, **conf: object) -> dict[str, str]:
    """One run; kind of each action -> note of its outcome."""
    run = plant.airflow.trigger("nas_reconcile", conf=conf)
    assert plant.airflow.wait("nas_reconcile", run) == "success"
    found = plant.airflow.result("nas_reconcile", run, "find")
    outcomes = [
        outcome
        for index in range(len(found))
        for outcome in plant.airflow.result("nas_reconcile", run, "carry_out", map_index=index)
    ]
    return {outcome["action"]["kind"]: outcome["note"] for outcome in outcomes}
