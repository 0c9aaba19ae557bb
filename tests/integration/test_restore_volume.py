"""One volume comes back as a new disk of a VM, which may go on running; and its chain goes on too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nasbackup.errors import HypervisorError, ParamInvalid, TargetExists, UnknownVm, UnknownVolume
from nasbackup.hypervisor import define
from nasbackup.model import BackupType, Target
from nasbackup.steps import Site

from lab import vm as lab
from tests.integration.restoring import assert_no_trace, identical, whole_restore
from tests.integration.story import Story


@pytest.fixture
def to(story: Story) -> Path:
    return story.machine.directory / "restored disks"


def restore(story: Story, site: Site, backup: Any, to: Path, **options: Any) -> Any:
    return whole_restore(site, backup, Target.VOLUME, volumes=("vdb",), to=str(to), **options)


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_volume_becomes_a_new_disk(story: Story, site: Site, to: Path, running: bool) -> None:
    story.machine.guest_io("vdb", "write -P 0x55 0 2M")
    story.backup()
    story.machine.guest_io("vdb", "write -P 0x56 1M 64k")
    backup = story.backup()
    active = story.active_checkpoint()
    if not running:
        story.machine.destroy()
    result = restore(story, site, backup, to)
    assert (result.attached, result.vm) == ("vdc", story.machine.name)
    image = story.machine.disks["vdc"]
    assert image.parent == to
    assert image.name == f"vdb-{backup.directory}.qcow2"
    assert identical(image, story.frozen[backup.external_id]["vdb"])
    assert_no_trace(site, to)
    assert story.active_checkpoint() == active
    if not running:
        story.machine.start()
    story.machine.guest_io("vdc", "read -P 0x55 0 1M", "read -P 0x56 1M 64k", "write -P 0x57 0 64k")
    third = story.backup()
    types = {volume.target: volume.type for volume in third.volumes}
    assert third.type is BackupType.INCREMENTAL
    assert types == {"vda": BackupType.INCREMENTAL, "vdb": BackupType.INCREMENTAL, "vdc": BackupType.FULL}
    story.assert_everything_restores()

    with pytest.raises(TargetExists):
        restore(story, site, backup, to)
    assert set(story.machine.disks) == {"vda", "vdb", "vdc"}


def test_another_vm_gets_it(story: Story, site: Site, to: Path, libvirt_connection: Any) -> None:
    backup = story.backup()
    with lab.lab_vm(
        libvirt_connection, name=f"{story.machine.name}-other", volumes=[lab.Volume(size=1 << 20)]
    ) as other:
        result = restore(story, site, backup, to, vm=other.name, image_format="raw")
        assert (result.vm, result.attached) == (other.name, "vdb")
        assert identical(
            to / f"vdb-{backup.directory}.raw", story.frozen[backup.external_id]["vdb"], image_format="raw"
        )
    assert set(story.machine.disks) == {"vda", "vdb"}


def test_bad_input_changes_nothing(story: Story, site: Site, to: Path) -> None:
    backup = story.backup()
    with pytest.raises(ParamInvalid, match="name the one volume"):
        whole_restore(site, backup, Target.VOLUME, to=str(to))
    with pytest.raises(UnknownVolume, match="Its volumes: vda, vdb"):
        whole_restore(site, backup, Target.VOLUME, volumes=("../x",), to=str(to))
    with pytest.raises(UnknownVm):
        restore(story, site, backup, to, vm="no such VM")
    assert not to.exists()
    assert_no_trace(site)


def test_a_disk_that_libvirt_refuses_leaves_nothing(
    story: Story, site: Site, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = story.backup()
    with monkeypatch.context() as patch:
        patch.setattr(define, "disk_xml", lambda **_: "<disk type='file'><target dev='vda' bus='virtio'/></disk>")
        with pytest.raises(HypervisorError):
            restore(story, site, backup, to)
    assert set(story.machine.disks) == {"vda", "vdb"}
    assert list(to.iterdir()) == []
    assert_no_trace(site, to)
    assert restore(story, site, backup, to).attached == "vdc"
