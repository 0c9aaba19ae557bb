"""``nas_backup`` under a real scheduler."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from nasbackup.model import BackupStatus, BackupType, Reason

from lab.airflow import AirflowError
from lab.vm import LabVm
from tests.system.conftest import Plant, parent_of, stopped_copy

pytestmark = pytest.mark.system

MIB = 1 << 20
MakeVm = Callable[..., LabVm]
SetVariable = Callable[[str, str], None]


def test_two_vms_with_one_and_two_volumes_at_once(plant: Plant, make_vm: MakeVm, tmp_path: Path) -> None:
    one, two = make_vm("one", 16 * MIB), make_vm("two", 16 * MIB, 8 * MIB)
    for machine in (one, two):
        machine.guest_io("vda", "write -P 0x11 0 2M")
    two.guest_io("vdb", "write -P 0x12 0 1M")
    runs = [plant.backup(machine.name) for machine in (one, two)]
    fulls = [plant.recorded(run) for run in runs]
    assert [len(backup.volumes) for backup in fulls] == [1, 2]
    assert [backup.type for backup in fulls] == [BackupType.FULL] * 2

    one.guest_io("vda", "write -P 0x21 1M 2M")
    two.guest_io("vdb", "discard 0 1M")
    runs = [plant.backup(machine.name) for machine in (one, two)]
    for machine, backup in zip((one, two), [plant.recorded(run) for run in runs], strict=True):
        assert backup.type is BackupType.INCREMENTAL
        assert backup.verified
        plant.assert_nothing_is_left(machine)
        plant.assert_restores_what_the_guest_has(machine, backup, work=tmp_path)

    decided = plant.airflow.result("nas_backup", runs[1], "decide_chain")["decision"]
    assert decided["reason"] == "incremental"
    assert "position 1" in decided["explanation"]
    labels = {task.title for task in plant.airflow.tasks("nas_backup", runs[1])}
    assert labels == {
        *(
            "decide_chain",
            "checkpoint",
            "copy[vda]",
            "copy[vdb]",
            "verify[vda]",
            "verify[vdb]",
            "record",
            "end_job",
            "try_again",
        )
    }
    events = plant.airflow.request("GET", "/assets/events", params={"source_run_id": runs[1]})["asset_events"]
    assert {event["name"] for event in events} == {"nas_backup", f"nas_backup/{two.uuid}"}
    latest = plant.backups_of(two.name)[-1]
    assert [event["extra"]["external_id"] for event in events] == [latest.external_id] * 2
    full, facts = plant.backups_of(two.name)[0], events[0]["extra"]
    assert (facts["vm"], facts["vm_uuid"], facts["host"]) == (two.name, two.uuid, "kvm_test")
    assert (facts["repository"], facts["chain_id"], facts["parent"]) == ("nas_test", full.chain_id, full.external_id)
    assert events[0]["extra"]["bytes_read"] == sum(volume.bytes_read or 0 for volume in latest.volumes)

    copied = plant.airflow.result("nas_backup", runs[1], "copy", map_index=1)["result"]
    assert copied["digest"].startswith("sha256-")
    assert copied["bytes_read"] == 0  # the discarded megabyte is known to be zero


def test_variables_changed_between_runs(plant: Plant, make_vm: MakeVm, variable: SetVariable) -> None:
    machine = make_vm("variables", 8 * MIB)
    variable("nas.backup.full.every", "2")
    made = [plant.recorded(plant.backup(machine.name)) for _ in range(3)]
    assert [backup.type.value[0] for backup in made] == ["F", "I", "F"]
    assert made[2].reason is Reason.CHAIN_COMPLETE
    variable("nas.backup.incremental.enabled.default", "false")
    assert plant.recorded(plant.backup(machine.name)).reason is Reason.INCREMENTAL_DISABLED
    plant.assert_nothing_is_left(machine)

    before = plant.backups_of(machine.name)
    variable("nas.backup.full.every", "ten")
    run = plant.backup(machine.name)
    assert plant.wait(run) == "failed"
    log = plant.airflow.log("nas_backup", run, "decide_chain")
    assert "Variable nas.backup.full.every is 'ten'" in log
    assert plant.backups_of(machine.name) == before


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"vm": "no-such-vm"}, "has no VM named 'no-such-vm'"),
        ({"exclude_volume": ["vdb"]}, "Unknown key in the run's conf: 'exclude_volume'"),
        ({"exclude_volumes": ["vdz"]}, "no volume 'vdz'"),
    ],
)
def test_a_bad_request_fails_once_with_one_sentence_and_touches_nothing(
    plant: Plant, make_vm: MakeVm, conf: dict[str, object], sentence: str
) -> None:
    machine = make_vm("bad", 8 * MIB)
    run = plant.backup(**{"vm": machine.name, **conf})  # type: ignore[arg-type]
    assert plant.wait(run) == "failed"
    tasks = {task.task_id: task for task in plant.airflow.tasks("nas_backup", run)}
    assert tasks["decide_chain"].try_number == 1, "a retry would not help"
    assert sentence in plant.airflow.log("nas_backup", run, "decide_chain")
    assert plant.backups_of(machine.name) == []
    plant.assert_nothing_is_left(machine)


@pytest.mark.parametrize("conf", [{"repository": "nowhere"}, {"host": "kvm_none"}, {"mode": "partial"}, {"vm": ""}])
def test_bad_values_are_refused_before_a_run_exists(plant: Plant, conf: dict[str, object]) -> None:
    with pytest.raises(AirflowError, match=r"\b4(00|22)\b"):
        plant.backup(**{"vm": "any", **conf})  # type: ignore[arg-type]


def test_a_failed_run_costs_nothing_and_the_next_is_incremental(plant: Plant, make_vm: MakeVm, tmp_path: Path) -> None:
    machine = make_vm("failed", 16 * MIB)
    full = plant.recorded(plant.backup(machine.name))
    machine.guest_io("vda", "write -P 0x31 0 1M")
    failed = plant.backup(machine.name, quiesce="fail")  # there is no agent in this guest
    assert plant.wait(failed) == "failed"
    assert plant.airflow.result("nas_backup", failed, "end_job")["status"] == "Failed"
    plant.assert_nothing_is_left(machine)
    assert [backup.status for backup in plant.backups_of(machine.name)] == [
        BackupStatus.BACKED_UP,
        BackupStatus.FAILED,
    ]

    machine.guest_io("vda", "write -P 0x32 4M 1M")
    after = plant.recorded(plant.backup(machine.name))
    assert (after.type, after.parent) == (BackupType.INCREMENTAL, full.external_id)
    plant.assert_restores_what_the_guest_has(machine, after, work=tmp_path)


def test_a_copy_killed_with_SIGKILL_is_retried_alone(plant: Plant, make_vm: MakeVm, tmp_path: Path) -> None:
    machine = make_vm("killed", 300 * MIB, 8 * MIB)
    machine.guest_io("vda", "write -P 0x41 0 300M")
    machine.guest_io("vdb", "write -P 0x42 0 8M")
    run = plant.backup(machine.name)
    with stopped_copy(machine.name, file="root.vda", timeout=120) as victim:
        os.kill(parent_of(victim), signal.SIGKILL)
    backup = plant.recorded(run)
    tries = {task.title: task.try_number for task in plant.airflow.tasks("nas_backup", run)}
    assert tries["copy[vda]"] == 2
    assert tries["copy[vdb]"] == 1, "a retry of one volume leaves the others alone"
    assert not Path(f"/proc/{victim}").exists(), "the killed copy's qemu-nbd is gone with it"
    assert sorted(path.name for path in (plant.nas / backup.external_id).glob("*.qcow2*")) == [
        "datadisk.vdb.qcow2",
        "root.vda.qcow2",
    ]
    plant.assert_nothing_is_left(machine)
    plant.assert_restores_what_the_guest_has(machine, backup, work=tmp_path)
