"""One volume comes back as a new disk of a VM, which may go on running; and its chain goes on too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import libvirt
import pytest
from nasbackup.errors import DiskNotAttached, NoFreeTarget, ParamInvalid, TargetExists, UnknownVm, UnknownVolume
from nasbackup.hypervisor import define
from nasbackup.model import BackupType, Target
from nasbackup.steps import Site
from nasbackup.steps import restore as steps

from lab import vm as lab
from tests.integration.restoring import assert_no_trace, bench_of, dry_run, identical, request, whole_restore
from tests.integration.story import Story, tool


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


def test_an_image_that_libvirt_refuses_stays_and_the_message_says_how_it_becomes_a_disk(
    story: Story, site: Site, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.machine.guest_io("vdb", "write -P 0x55 0 2M")
    backup = story.backup()
    image = to / f"vdb-{backup.directory}.qcow2"
    with monkeypatch.context() as patch:
        patch.setattr(define, "disk_xml", lambda **_: "<disk type='file'><target dev='vda' bus='virtio'/></disk>")
        with pytest.raises(DiskNotAttached, match=f"restored to {image} and stays there") as caught:
            restore(story, site, backup, to)
    assert set(story.machine.disks) == {"vda", "vdb"}
    assert list(to.iterdir()) == [image]
    assert_no_trace(site, to)
    assert identical(image, story.frozen[backup.external_id]["vdb"])
    virsh, *arguments = shlex.split(caught.value.command)
    assert str(caught.value).endswith(caught.value.command)
    tool(virsh, "-c", lab.URI, *arguments)
    assert set(story.machine.disks) == {"vda", "vdb"}
    story.machine.destroy()
    assert story.machine.disks["vdc"] == image


def test_a_disk_that_libvirt_refused_is_attached_when_the_step_is_made_again(
    story: Story, site: Site, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = story.backup()
    bench, asked = bench_of(site), request(backup, Target.VOLUME, volumes=("vdb",), to=str(to))
    bench.lease(uuid=backup.vm_uuid, vm=backup.vm).join()
    steps.plan(bench, request=asked)
    steps.restore_volume(bench, backup=backup, key=asked.key, volume="vdb")
    with monkeypatch.context() as patch:
        patch.setattr(define, "disk_xml", lambda **_: "<disk type='file'><target dev='vda' bus='virtio'/></disk>")
        with pytest.raises(DiskNotAttached) as caught:
            steps.commit(bench, backup=backup, key=asked.key)
    assert caught.value.retryable
    assert steps.commit(bench, backup=backup, key=asked.key).attached == "vdc"
    steps.give_back(bench, backup=backup, key=asked.key)
    assert story.machine.disks["vdc"] == to / f"vdb-{backup.directory}.qcow2"
    assert_no_trace(site, to)


def test_a_bus_without_hot_plug_or_without_room_is_told_before_anything_is_read(
    story: Story, site: Site, to: Path, libvirt_connection: Any
) -> None:
    backup = story.backup()
    with lab.lab_vm(
        libvirt_connection,
        name=f"{story.machine.name}-other",
        volumes=[lab.Volume(size=1 << 20) for _ in range(4)],
        start=False,
    ) as other:
        definition = other.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        definition = re.sub(r"<address type='pci'[^>]*/>", "", definition.replace("bus='virtio'", "bus='ide'"))
        definition = definition.replace("dev='vd", "dev='hd")
        other.connection.defineXML(definition)
        with pytest.raises(NoFreeTarget, match="bus ide"):
            restore(story, site, backup, to, vm=other.name)
        assert not to.exists()
        other.connection.defineXML(re.sub(r"<disk (?:(?!</disk>).)*hdd.*?</disk>", "", definition, flags=re.DOTALL))
        assert set(other.disks) == {"hda", "hdb", "hdc"}
        other.start()
        told = r"a disk on bus ide.* shut down and started again"
        plan = dry_run(site, backup, Target.VOLUME, volumes=("vdb",), to=str(to), vm=other.name)
        assert re.search(told, *plan.notes)
        result = restore(story, site, backup, to, vm=other.name)
        assert result.attached == "hdd"
        assert re.search(told, *result.notes)
        assert set(other.disks) == {"hda", "hdb", "hdc"}
        other.destroy()
        assert identical(other.disks["hdd"], story.frozen[backup.external_id]["vdb"])
    assert_no_trace(site, to)
