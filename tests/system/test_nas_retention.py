"""``nas_retention`` under a real scheduler: reports, asks, deletes, and leaves what is kept restorable."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nasbackup.catalog import vms
from nasbackup.model import Backup, BackupStatus, BackupType, Mode, Reason

from lab.vm import LabVm
from tests.integration.test_deletion import VM_NAME, Vault, place_for
from tests.system.conftest import DAY, Plant, away_from

pytestmark = pytest.mark.system

MIB = 1 << 20
BACKED_UP, DELETE_PENDING = BackupStatus.BACKED_UP, BackupStatus.DELETE_PENDING


def retention(plant: Plant, *, answer: str | None = None, **conf: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """One run; the results of report and summary."""
    run = plant.airflow.trigger("nas_retention", conf=conf)
    plant.runs.append(run)
    if answer is not None:
        question = plant.airflow.answer("nas_retention", run, "approval", choice=answer)
        assert "it would delete 3 backups, more than 2" in question
    assert plant.airflow.wait("nas_retention", run) == "success", plant.airflow.tasks("nas_retention", run)
    return (
        plant.airflow.result("nas_retention", run, "report"),
        plant.airflow.result("nas_retention", run, "summary"),
    )


def files(plant: Plant, machine: LabVm) -> list[str]:
    return sorted(str(path.relative_to(plant.nas)) for path in (plant.nas / machine.name).glob("*/*"))


def statuses(plant: Plant, machine: LabVm) -> list[BackupStatus]:
    return [backup.status for backup in plant.backups_of(machine.name)]


def test_a_chain_goes_when_nothing_keeps_it_and_a_parent_waits_for_its_child(
    plant: Plant, make_vm: Callable[..., LabVm], tmp_path: Path
) -> None:
    away_from(seconds=120, every=DAY)
    machine = make_vm("kept", 8 * MIB, 4 * MIB)
    made: list[Backup] = []
    for number in range(5):
        machine.guest_io("vda", f"write -P {number + 1} {number}M 1M")
        made.append(plant.backup_at_once(machine.name, full_every=3))
    assert [backup.type.value[0] for backup in made] == ["F", "I", "I", "F", "I"]
    old, kept = made[:3], made[3:]
    before = files(plant, machine)

    report, summary = retention(plant, vms=[machine.name])
    assert report["would_delete"] == [backup.external_id for backup in reversed(old)], "leaf first"
    assert (report["dry_run"], report["kept_by_rule"], summary["deleted"]) == (True, {"keep_last": 2}, 0)
    retention(plant, vms=[machine.name], dry_run=False, answer="Reject")
    assert files(plant, machine) == before

    _, summary = retention(plant, vms=[machine.name], dry_run=False, answer="Approve")
    (result,) = plant.airflow.result("nas_retention", plant.runs[-1], "delete", map_index=0)["chains"]
    assert (summary["deleted"], summary["delete_pending"], summary["left"]) == (3, 0, [])
    assert summary["bytes_freed"] == sum(backup.size or 0 for backup in old)
    assert (result["files_before"], result["files_after"]) == (before, files(plant, machine))
    assert files(plant, machine) == [name for name in before if any(b.external_id in name for b in kept)]
    assert [backup.external_id for backup in plant.backups_of(machine.name)] == [b.external_id for b in kept]
    plant.assert_restores_what_the_guest_has(machine, kept[-1], work=tmp_path)

    # A rule of one run keeps the incremental alone: its full stays, delete-pending, until that goes too.
    _, summary = retention(plant, vms=[machine.name], rules={"keep_last": 1}, dry_run=False)
    assert statuses(plant, machine) == [BACKED_UP, BACKED_UP], "minimum_fulls is a floor: the full is the only one"
    machine.guest_io("vda", "write -P 0x77 0 1M")
    full = plant.backup_at_once(machine.name, mode=Mode.FULL)
    _, summary = retention(plant, backups=[kept[0].external_id], dry_run=False)
    assert (summary["deleted"], summary["delete_pending"]) == (0, 1)
    assert statuses(plant, machine) == [DELETE_PENDING, BACKED_UP, BACKED_UP]
    plant.assert_restores_what_the_guest_has(machine, full, work=tmp_path)
    _, summary = retention(plant, backups=[kept[1].external_id], dry_run=False)
    assert (summary["deleted"], summary["delete_pending"]) == (2, 0), "the parent fell with its last child"
    assert [backup.external_id for backup in plant.backups_of(machine.name)] == [full.external_id]


def test_without_the_backup_of_the_active_checkpoint_its_bitmap_goes_and_the_next_is_full(
    plant: Plant, make_vm: Callable[..., LabVm]
) -> None:
    machine = make_vm("active", 8 * MIB)
    first = plant.backup_at_once(machine.name)
    second = plant.backup_at_once(machine.name)
    assert second.type is BackupType.INCREMENTAL
    _, summary = retention(plant, backups=[second.external_id], dry_run=False)
    assert summary["deleted"] == 1
    with plant.database.transaction() as cursor:
        assert vms.active_checkpoint(cursor, vm_uuid=machine.uuid, repository="nas_test") is None
    assert machine.domain.listAllCheckpoints() == []
    assert machine.dirty_bitmaps() == {"vda": {}}
    plant.assert_nothing_is_left(machine)
    third = plant.recorded(plant.backup(machine.name))
    assert (third.type, third.reason) == (BackupType.FULL, Reason.NO_ACTIVE_CHECKPOINT)
    assert [backup.external_id for backup in plant.backups_of(machine.name)] == [first.external_id, third.external_id]


def test_an_unprotected_vm_is_reported_and_keeps_its_backups(plant: Plant, make_vm: Callable[..., LabVm]) -> None:
    machine = make_vm("nobodys", 8 * MIB)
    plant.backup_at_once(machine.name)
    report, _ = retention(plant, vms=[machine.name], dry_run=False)
    (found,) = report["unprotected"]
    assert found["why"] == "no policy of fleet.yaml matches it"
    assert found["goes"].startswith("90 days after ")
    assert statuses(plant, machine) == [BACKED_UP]


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"rules": {"keep_dayly": 7}}, "'keep_dayly' was unexpected"),
        ({"rules": {"recovery_window": "two weeks"}}, "recovery_window: 'two weeks' does not match"),
        ({"backups": ["i-9/2001.01.01.00.00.00"]}, "There is no backup 'i-9/2001.01.01.00.00.00'"),
        ({"vm": "i-9"}, "Unknown key in the run's conf: 'vm'"),
    ],
)
def test_a_bad_request_deletes_nothing_and_says_why(plant: Plant, conf: dict[str, Any], sentence: str) -> None:
    run = plant.airflow.trigger("nas_retention", conf={**conf, "dry_run": False})
    assert plant.airflow.wait("nas_retention", run) == "failed"
    assert sentence in plant.airflow.log("nas_retention", run, "report")
    assert {task.state for task in plant.airflow.tasks("nas_retention", run) if task.task_id == "delete"} <= {
        "upstream_failed",
        None,
    }


@pytest.fixture
def retired(plant: Plant, tmp_path: Path) -> Iterator[Vault]:
    """A VM, which no host defines, with a backup in a repository of which Airflow has no Connection any more."""
    vault = Vault(site=place_for(plant.database, tmp_path / "retired", name="nas_retired"))
    yield vault
    with plant.database.transaction() as cursor:  # nothing of its namesakes stays either
        for table in ("active_checkpoint", "retired_checkpoint", "backup", "vm"):
            cursor.execute(f"DELETE FROM {table} WHERE vm_id IN (SELECT vm_id FROM vm WHERE name = %s)", (VM_NAME,))
        cursor.execute("DELETE FROM repository WHERE name = 'nas_retired'")
    shutil.rmtree(plant.nas / VM_NAME, ignore_errors=True)


def test_what_fails_of_one_vm_hides_nothing_of_the_others_and_the_last_of_a_vm_is_asked_about(
    plant: Plant, retired: Vault
) -> None:
    """Of VMs that no host defines: one in a repository that is gone, one that goes on, one of which nothing stays."""
    going_on, ending = Vault(site=plant.site), Vault(site=plant.site)
    kept = {vault.vm_uuid: [vault.record(vault.begin()) for _ in range(2)][1] for vault in (retired, going_on)}
    last = ending.record(ending.begin())
    with plant.database.transaction() as cursor:  # all that for a year, but for what somebody made by hand yesterday
        vms = [retired.vm_uuid, going_on.vm_uuid, ending.vm_uuid]
        cursor.execute(
            "UPDATE vm SET unprotected_since = now() - interval '1 year' WHERE uuid = ANY(%s::uuid[])", (vms,)
        )
        cursor.execute(
            "UPDATE backup b SET created_at = now() - CASE WHEN backup_id = ANY(%s) THEN interval '1 day'"
            " ELSE interval '1 year' END FROM vm WHERE vm.vm_id = b.vm_id AND uuid = ANY(%s::uuid[])",
            ([backup.backup_id for backup in kept.values()], vms),
        )
    run = plant.airflow.trigger("nas_retention", conf={"vms": [VM_NAME], "dry_run": False})
    retention(plant, vms=["nobody's"])  # by hand, in between: it does not wait for the answer
    question = plant.airflow.answer("nas_retention", run, "approval_of_last", choice="Approve")
    assert f"it would delete the last backup of {VM_NAME}. Shall it?" in question
    assert plant.airflow.wait("nas_retention", run) == "failed", plant.airflow.tasks("nas_retention", run)
    states = {(task.task_id, task.state) for task in plant.airflow.tasks("nas_retention", run)}
    assert states >= {("delete", "success"), ("delete", "failed"), ("delete_last", "success")}
    assert states >= {("summary", "success"), ("nothing_failed", "upstream_failed")}
    assert states >= {("summary_of_last", "success"), ("nothing_failed_of_last", "success")}
    for name in ("summary", "summary_of_last"):
        assert plant.airflow.result("nas_retention", run, name)["deleted"] == 1
    assert going_on.statuses() == {kept[going_on.vm_uuid].external_id: BACKED_UP}
    assert list(retired.statuses().values()) == [BACKED_UP, BACKED_UP]
    assert ending.statuses() == {}
    assert not (plant.nas / last.external_id).exists()
