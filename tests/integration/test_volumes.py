"""Volumes that come, go, grow, move or lose their bitmap: full inside the incremental, or dropped, and said so."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
from nasbackup.catalog import repositories
from nasbackup.errors import NothingToBackUp
from nasbackup.hypervisor import checkpoints, connect
from nasbackup.model import BackupType, Mode, Reason, Repository, RepositoryType, VolumeReason
from nasbackup.nas import repository as nas_repository
from nasbackup.steps import Site

from lab import vm as lab
from tests.integration.story import Story, tool

MIB = 1 << 20
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG


def reasons(backup: Any) -> dict[str, VolumeReason]:
    return {volume.target: volume.reason for volume in backup.volumes}


def test_hot_plugged_resized_and_detached(story: Story) -> None:
    story.backup()
    target = story.machine.attach(volume=lab.Volume(size=5 * MIB))
    story.machine.guest_io(target, "write -P 0x11 0 1M")
    story.machine.guest_io("vda", "write -P 0x12 0 64k")
    with_new = story.backup()
    assert with_new.type is BackupType.INCREMENTAL
    assert reasons(with_new) == {
        "vda": VolumeReason.INCREMENTAL,
        "vdb": VolumeReason.INCREMENTAL,
        target: VolumeReason.NEW_VOLUME,
    }
    assert reasons(story.backup())[target] is VolumeReason.INCREMENTAL

    story.machine.domain.blockResize("vdb", 12 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    story.machine.guest_io("vdb", "write -P 0x13 11M 1M")
    assert reasons(story.backup())["vdb"] is VolumeReason.RESIZED
    assert reasons(story.backup())["vdb"] is VolumeReason.INCREMENTAL

    disk = lab.disk_xml(target=target, path=story.machine.disks[target])
    story.machine.destroy()  # nobody in this guest would answer a request to unplug
    story.machine.domain.detachDeviceFlags(disk, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    story.machine.start()
    assert set(reasons(story.backup())) == {"vda", "vdb"}
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_volume_is_its_source_path_not_its_position(story: Story) -> None:
    story.machine.guest_io("vda", "write -P 0x21 0 1M")
    story.machine.guest_io("vdb", "write -P 0x22 0 1M")
    story.backup()
    story.machine.destroy()
    swap_targets(story)
    story.machine.start()
    backup = story.backup()
    for volume in backup.volumes:  # the image that was vda is called vdb now, and its file says which one it is
        assert Path(volume.source).stem in volume.file
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_replaced_image_at_the_same_path_or_target_is_full(story: Story) -> None:
    story.backup()
    story.machine.destroy()
    image = story.machine.disks["vdb"]
    size = image.stat().st_size
    image.unlink()
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(image), str(9 * MIB + 512))
    assert size > 0
    story.machine.start()
    story.machine.guest_io("vdb", "write -P 0x31 2M 1M")
    assert reasons(story.backup())["vdb"] is VolumeReason.BITMAP_UNUSABLE
    story.assert_everything_restores()
    story.assert_tidy()


def test_one_broken_bitmap_costs_only_its_own_volume_a_full(story: Story) -> None:
    backup = story.backup()
    story.machine.destroy()
    tool("qemu-img", "bitmap", "--remove", "-f", "qcow2", str(story.machine.disks["vdb"]), str(backup.checkpoint))
    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x41 0 64k")
    mixed = story.backup()
    assert mixed.type is BackupType.INCREMENTAL
    assert reasons(mixed) == {"vda": VolumeReason.INCREMENTAL, "vdb": VolumeReason.BITMAP_UNUSABLE}
    assert "vdb" in mixed.explanation
    story.assert_everything_restores()
    story.assert_tidy()


def test_in_use_bitmaps_after_a_crash_are_removed(story: Story) -> None:
    story.backup()
    story.machine.destroy()
    story.machine.start()  # stored in the images now, and in use
    story.machine.crash()
    story.machine.start()
    assert all(bitmap.inconsistent for disk in story.machine.dirty_bitmaps().values() for bitmap in disk.values())
    assert story.backup().reason is Reason.BITMAP_UNUSABLE
    story.assert_everything_restores()
    story.assert_tidy()


def test_raw_volumes_are_full_every_time_and_do_not_stop_the_others(story: Story) -> None:
    raw = story.machine.directory / "extra.img"
    with raw.open("wb") as file:
        file.truncate(3 * MIB)
    story.machine.domain.attachDeviceFlags(raw_disk(raw, target="vdz"), LIVE)
    story.machine.guest_io("vdz", "write -P 0x51 0 1M")
    story.backup()
    story.machine.guest_io("vdz", "write -P 0x52 1M 64k")
    second = story.backup()
    assert second.type is BackupType.INCREMENTAL
    assert reasons(second)["vdz"] is VolumeReason.NO_BITMAP_POSSIBLE
    story.assert_everything_restores()
    story.assert_tidy()


def test_network_disks_are_full_while_the_vm_runs_and_refused_while_it_is_stopped(story: Story, tmp_path: Path) -> None:
    image, socket = story.machine.directory / "remote.raw", "/var/lib/nasbackup/run/test-remote.sock"
    with image.open("wb") as file:
        file.truncate(2 * MIB)
    server = subprocess.Popen(["qemu-nbd", "--persistent", "-f", "raw", "-k", socket, str(image)])
    try:
        wait_until(lambda: Path(socket).exists())
        Path(socket).chmod(0o777)
        story.machine.domain.attachDeviceFlags(network_disk(socket, target="vdy"), LIVE)
        story.machine.guest_io("vdy", "write -P 0x61 0 1M")
        story.backup()
        second = story.backup()
        assert reasons(second)["vdy"] is VolumeReason.NO_BITMAP_POSSIBLE
        story.assert_everything_restores()
        story.machine.destroy()
        with pytest.raises(NothingToBackUp, match="vdy: a network disk can be read only while the VM runs"):
            story.decide()
        story.backup(exclude_volumes=("vdy",))
    finally:
        server.kill()
        server.wait()
        Path(socket).unlink(missing_ok=True)


def test_each_repository_has_its_own_chain(story: Story, tmp_path: Path) -> None:
    other = second_repository(story, path=tmp_path / "other")
    story.machine.guest_io("vda", "write -P 0x71 0 1M")
    assert story.backup().reason is Reason.NO_ACTIVE_CHECKPOINT
    story.machine.guest_io("vda", "write -P 0x72 1M 1M")
    assert other.backup().reason is Reason.NO_ACTIVE_CHECKPOINT
    story.machine.guest_io("vda", "write -P 0x73 2M 1M")
    here, there = story.backup(), other.backup()
    assert [backup.type for backup in (here, there)] == [BackupType.INCREMENTAL] * 2
    assert [backup.volumes[0].bytes_read for backup in (here, there)] == [2 * MIB, MIB]
    assert other.backup(mode=Mode.FULL).reason is Reason.FORCED_FULL
    assert story.backup().type is BackupType.INCREMENTAL
    for teller in (story, other):
        for external_id in teller.frozen:
            teller.assert_restores(external_id)
    assert len(story.active_checkpoints()) == 2
    story_checkpoints = {checkpoint.getName() for checkpoint in story.machine.domain.listAllCheckpoints()}
    assert story_checkpoints == story.active_checkpoints()


def test_a_domain_defined_anew_goes_on_incrementally(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x81 0 1M")
    definition = story.machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    story.machine.destroy()
    story.machine.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    story.machine.connection.defineXML(definition)
    assert story.machine.domain.listAllCheckpoints() == []
    story.machine.start()
    backup = story.backup()
    assert backup.type is BackupType.INCREMENTAL
    assert backup.volumes[0].bytes_read == MIB
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_vm_that_was_renamed_begins_a_chain_of_its_own(story: Story) -> None:
    """Its UUID is the same; layers refer to each other within one directory, which is named as the VM is."""
    old = story.backup()
    definition = story.machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    story.machine.destroy()
    story.machine.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    name = f"{story.machine.name}-new"
    story.machine.connection.defineXML(definition.replace(f"<name>{story.machine.name}<", f"<name>{name}<"))
    renamed = replace(story, machine=lab.LabVm(connection=story.machine.connection, name=name))
    try:
        assert renamed.machine.uuid == old.vm_uuid
        renamed.machine.start()
        backup = renamed.backup()
        assert (backup.type, backup.reason) == (BackupType.FULL, Reason.VM_RENAMED)
        assert backup.external_id.startswith(f"{name}/")
        assert renamed.backup().parent == backup.external_id
        renamed.assert_everything_restores()
        renamed.assert_tidy()
    finally:
        renamed.machine.destroy()
        renamed.machine.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        story.machine.connection.defineXML(definition)


def test_metadata_lost_while_the_vm_runs_is_told_to_libvirt_again(story: Story) -> None:
    backup = story.backup()
    checkpoint = story.machine.domain.checkpointLookupByName(backup.checkpoint)
    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)  # as after a migration
    story.machine.guest_io("vda", "write -P 0x82 0 64k")
    assert story.backup().type is BackupType.INCREMENTAL
    story.assert_everything_restores()
    story.assert_tidy()


def test_qemu_refuses_to_revert_an_image_whose_bitmap_would_then_lie(story: Story) -> None:
    story.machine.destroy()
    story.machine.domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x91 0 1M")
    story.backup()
    story.machine.destroy()
    with pytest.raises(libvirt.libvirtError, match="Could not apply snapshot"):
        story.machine.domain.revertToSnapshot(story.machine.domain.snapshotLookupByName("before"))
    # Whoever removes the bitmaps first can revert, and has no bitmap to believe any more.
    for image in story.machine.disks.values():
        tool("qemu-img", "bitmap", "--remove", "-f", "qcow2", str(image), str(story.active_checkpoint()))
    story.machine.domain.revertToSnapshot(story.machine.domain.snapshotLookupByName("before"))
    story.machine.start()
    backup = story.backup()
    assert (backup.type, backup.reason) == (BackupType.FULL, Reason.BITMAP_UNUSABLE)
    story.assert_everything_restores()


def test_an_encrypted_volume_is_refused_unless_allowed(story: Story) -> None:
    connection = story.machine.connection
    secret = connection.secretDefineXML(
        "<secret ephemeral='yes' private='no'><usage type='volume'><volume>lab-luks</volume></usage></secret>"
    )
    secret.setValue(b"passphrase")
    image = story.machine.directory / "secret.luks"
    create_luks(image, passphrase="passphrase", size=MIB)
    disk = raw_disk(
        image,
        target="vdx",
        encryption=f"<encryption format='luks'><secret type='passphrase' uuid='{secret.UUIDString()}'/></encryption>",
    )
    try:
        story.machine.domain.attachDeviceFlags(disk, LIVE)
        story.machine.guest_io("vdx", "write -P 0xa1 0 64k")
        with pytest.raises(NothingToBackUp, match="vdx: it is encrypted and its backup would be plain text"):
            story.decide()
        backup = story.backup(allow_encrypted=True)
        assert reasons(backup)["vdx"] is VolumeReason.FULL_BACKUP
        story.assert_restores(backup.external_id)
        assert [v.target for v in story.backup(exclude_volumes=("vdx",)).volumes] == ["vda", "vdb"]
    finally:
        story.machine.destroy()
        secret.undefine()


def test_a_transient_domain_goes_on_incrementally_also_when_it_is_created_anew(story: Story) -> None:
    """libvirt forgets all of it when it stops; what is in its images is told to libvirt again."""
    machine = story.machine
    machine.destroy()
    definition = machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    machine.domain.undefine()
    try:
        machine.connection.createXML(definition)
        assert not machine.domain.isPersistent()
        machine.guest_io("vda", "write -P 0x61 0 1M")
        assert story.backup().type is BackupType.FULL
        machine.guest_io("vda", "write -P 0x62 512k 1M")
        assert story.backup().type is BackupType.INCREMENTAL
        machine.destroy()
        machine.connection.createXML(definition)
        machine.guest_io("vda", "write -P 0x63 1M 1M")
        assert story.backup().type is BackupType.INCREMENTAL
        story.assert_everything_restores()
        story.assert_tidy()
    finally:
        machine.connection.defineXML(definition)


def create_luks(image: Path, *, passphrase: str, size: int) -> None:
    """As ``qemu-img`` does it, again where it could not tell how long its key derivation takes.

    It divides by the CPU time of a measurement that begins with a few milliseconds: where the kernel counts CPU time by
    its ticks, that is now and then zero.
    """
    command = [
        *("qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=s,data={passphrase}"),
        *("-o", "key-secret=s,iter-time=10", str(image), str(size)),
    ]
    for _ in range(50):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def test_bitmaps_never_pile_up(story: Story) -> None:
    for number in range(4):
        story.machine.guest_io("vda", f"write -P {number} 0 64k")
        story.backup()
        assert len(story.machine.dirty_bitmaps()["vda"]) == 1
    with connect(story.site.host) as hypervisor:
        assert len(checkpoints.present(hypervisor, domain=story.machine.domain)) == 1


def second_repository(story: Story, *, path: Path) -> Story:
    path.mkdir()
    repository = Repository(name="nas_other", type=RepositoryType.LOCAL, path=str(path))
    with story.site.database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    site = Site(database=story.site.database, host=story.site.host, repository=repository)
    work = story.work / "other-work"
    work.mkdir()
    return Story(site=site, machine=story.machine, work=work)


def swap_targets(story: Story) -> None:
    definition = story.machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    paths = {target: str(path) for target, path in story.machine.disks.items()}
    swapped = definition.replace(paths["vda"], "@").replace(paths["vdb"], paths["vda"]).replace("@", paths["vdb"])
    story.machine.connection.defineXML(swapped)


def raw_disk(path: Path, *, target: str, encryption: str = "") -> str:
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/>"
        f"<source file='{path}'>{encryption}</source><target dev='{target}' bus='virtio'/></disk>"
    )


def network_disk(socket: str, *, target: str) -> str:
    return (
        f"<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
        f"<source protocol='nbd'><host transport='unix' socket='{socket}'/></source>"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
