"""``nas_restore`` under a real scheduler: it asks before a VM's volumes are replaced, and makes VMs and disks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nasbackup.catalog import restores, vms
from nasbackup.restore.image import locate, restore_images

from lab.vm import LabVm
from tests.integration.restoring import content
from tests.system.conftest import Plant

pytestmark = pytest.mark.system

MIB = 1 << 20


def contents(machine: LabVm) -> dict[str, bytes]:
    return {target: content(image) for target, image in machine.disks.items()}


def restore(plant: Plant, *, answer: str | None = None, **conf: object) -> tuple[str, str]:
    run = plant.airflow.trigger("nas_restore", conf={"host": "kvm_test", **conf})
    if answer is not None:
        question = plant.airflow.answer("nas_restore", run, "approval", choice=answer)
        assert "it would replace vda, vdb of VM" in question
        assert "kept beside them" in question
    return run, plant.airflow.wait("nas_restore", run)


def states(plant: Plant, run: str) -> dict[str, str | None]:
    return {task.task_id: task.state for task in plant.airflow.tasks("nas_restore", run)}


def assert_nothing_is_left(plant: Plant, machine: LabVm) -> None:
    with plant.database.transaction() as cursor:
        assert [row.vm_uuid for row in restores.list_all(cursor) if row.vm_uuid == machine.uuid] == []
        cursor.execute("SELECT 1 FROM lease JOIN vm USING (vm_id) WHERE uuid = %s", (machine.uuid,))
        assert cursor.fetchall() == []
        cursor.execute("SELECT reader FROM reading")
        assert cursor.fetchall() == []
    assert [path.name for path in machine.directory.iterdir() if ".restoring-" in path.name] == []


@pytest.fixture
def backed_up(plant: Plant, make_vm: Callable[..., LabVm]) -> tuple[LabVm, list[Any]]:
    """A VM with two backups that went on since."""
    machine = make_vm("target", 8 * MIB, 4 * MIB)
    made = []
    for number in (1, 2):
        machine.guest_io("vda", f"write -P {number} 0 1M")
        machine.guest_io("vdb", f"write -P {number} 1M 1M")
        made.append(plant.backup_at_once(machine.name))
    machine.guest_io("vda", "write -P 9 0 4M")
    return machine, made


def test_in_place_asks_first_and_a_no_changes_nothing(plant: Plant, backed_up: tuple[LabVm, list[Any]]) -> None:
    machine, (first, second) = backed_up
    in_place = {"vm": machine.name, "target": "in_place"}
    run, state = restore(plant, **in_place)
    assert state == "failed"
    assert "is running: shut it down first" in plant.airflow.log("nas_restore", run, "plan")
    assert_nothing_is_left(plant, machine)

    machine.destroy()
    before = contents(machine)
    run, state = restore(plant, answer="Reject", **in_place)
    assert states(plant, run)["commit"] == "skipped"
    assert contents(machine) == before
    assert_nothing_is_left(plant, machine)

    run, state = restore(plant, answer="Approve", **in_place)
    assert state == "success", plant.airflow.tasks("nas_restore", run)
    result = plant.airflow.result("nas_restore", run, "commit")
    assert (result["external_id"], len(result["kept"])) == (second.external_id, 2)
    after = contents(machine)
    assert (after["vda"][:MIB], after["vdb"][MIB : 2 * MIB]) == (b"\2" * MIB, b"\2" * MIB)
    with plant.database.transaction() as cursor:
        assert vms.active_checkpoint(cursor, vm_uuid=machine.uuid, repository="nas_test") is None
    assert_nothing_is_left(plant, machine)

    run, state = restore(plant, backup=first.external_id, target="in_place", approved=True, keep_old=False, start=True)
    assert state == "success", plant.airflow.tasks("nas_restore", run)
    assert machine.running
    machine.guest_io("vda", "read -P 1 0 1M")
    assert plant.airflow.result("nas_restore", run, "commit")["kept"] == []
    assert_nothing_is_left(plant, machine)


def test_a_new_vm_and_a_new_disk(plant: Plant, backed_up: tuple[LabVm, list[Any]]) -> None:
    machine, (first, second) = backed_up
    name, to = f"{machine.name}-again", machine.directory / "new"
    other = LabVm(connection=machine.connection, name=name)
    try:
        run, state = restore(plant, backup=second.external_id, target="new_vm", new_name=name, to=str(to), start=True)
        assert state == "success", plant.airflow.tasks("nas_restore", run)
        assert plant.airflow.result("nas_restore", run, "commit")["vm"] == name
        assert other.running
        other.guest_io("vda", "read -P 2 0 1M")
    finally:
        other.remove()
    asked = {"backup": first.external_id, "target": "volume", "volumes": ["vdb"], "to": str(to)}
    run, state = restore(plant, **asked)
    assert state == "success", plant.airflow.tasks("nas_restore", run)
    assert plant.airflow.result("nas_restore", run, "commit")["attached"] == "vdc"
    machine.guest_io("vdc", "read -P 1 1M 1M")
    run, state = restore(plant, **asked)
    assert state == "failed"
    assert "exists already; nothing was written" in plant.airflow.log("nas_restore", run, "plan")
    assert_nothing_is_left(plant, machine)


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"target": "in_place"}, "name a backup, or else a VM"),
        ({"vm": "no such VM", "target": "in_place"}, "has no backup that can be restored at all"),
        ({"vm": "no such VM", "before": "yesterday"}, "it is no time like"),
        ({"vm": "x", "targt": "in_place"}, "Unknown key in the run's conf: 'targt'"),
    ],
)
def test_bad_input_is_one_sentence_in_the_log(plant: Plant, conf: dict[str, Any], sentence: str) -> None:
    run, state = restore(plant, **conf)
    assert state == "failed"
    assert sentence in plant.airflow.log("nas_restore", run, "plan")
    assert [task.try_number for task in plant.airflow.tasks("nas_restore", run) if task.task_id == "plan"] == [1]


def test_an_instant_vm_runs_and_becomes_independent(
    plant: Plant, backed_up: tuple[LabVm, list[Any]], tmp_path: Path
) -> None:
    machine, (first, _second) = backed_up
    on_nas = {path: path.read_bytes() for path in (plant.nas / machine.name).rglob("*") if path.is_file()}
    new = LabVm(connection=machine.connection, name=f"{machine.name}-instant")
    asked = {"backup": first.external_id, "target": "instant", "to": str(new.directory)}
    run, state = restore(plant, **asked)
    assert state == "failed"
    assert "Param new_name is None: target instant makes a VM: name it." in plant.airflow.log(
        "nas_restore", run, "plan"
    )
    try:
        run, state = restore(plant, **asked, new_name=new.name)
        assert state == "success", states(plant, run)
        assert new.running
        images = restore_images(locate(plant.database, external_id=first.external_id), to=tmp_path)
        expected = {volume.name: content(volume.file) for volume in images}
        new.destroy()  # what its QEMU has in memory is in the images then
        same = contents(new) == expected
        assert same  # not the comparison itself: pytest would print the difference of megabytes
        assert on_nas == {path: path.read_bytes() for path in on_nas}
        assert plant.backup_at_once(machine.name).chain_position == 2, "its own chain goes on"
    finally:
        new.remove()
    assert_nothing_is_left(plant, machine)
