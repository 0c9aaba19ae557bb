"""``nas_restore`` under a real scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nasbackup.model import BackupType

from lab import proof
from lab.vm import LabVm
from tests.system.conftest import Plant

pytestmark = pytest.mark.system

MIB = 1 << 20


def restore(plant: Plant, *, backup: str, to: Path, **conf: object) -> tuple[str, str]:
    run = plant.airflow.trigger("nas_restore", conf={"backup": backup, "to": str(to), **conf})
    return run, plant.airflow.wait("nas_restore", run)


def test_an_incremental_becomes_images_and_a_second_restore_overwrites_nothing(
    plant: Plant, make_vm: Callable[..., LabVm], tmp_path: Path
) -> None:
    machine = make_vm("restore", 16 * MIB, 8 * MIB)
    machine.guest_io("vda", "write -P 0x51 0 4M")
    plant.recorded(plant.backup(machine.name))
    machine.guest_io("vda", "write -P 0x52 1M 1M", "discard 2M 1M")
    backup = plant.recorded(plant.backup(machine.name))
    assert backup.type is BackupType.INCREMENTAL

    run, state = restore(plant, backup=backup.external_id, to=tmp_path / "images", format="raw")
    assert state == "success"
    done = {volume["source"]: volume for volume in plant.airflow.result("nas_restore", run, "summary")}
    machine.destroy()
    for source in map(str, machine.disks.values()):
        raw = tmp_path / "disk.raw"
        proof.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, str(raw))
        proof.assert_identical(image=Path(done[source]["file"]), image_format="raw", frozen=raw)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    run, state = restore(plant, backup=backup.external_id, to=tmp_path / "images", format="raw")
    assert state == "failed"
    assert "exists already; nothing was written" in plant.airflow.log("nas_restore", run, "plan")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()} == before

    run, state = restore(plant, backup=f"{machine.name}/2001.01.01.00.00.00", to=tmp_path / "none")
    assert state == "failed"
    assert "There is no backup" in plant.airflow.log("nas_restore", run, "plan")
    assert not (tmp_path / "none").exists()
