"""A VM becomes again what it was: all of it or nothing, and its old volumes are there until somebody removes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt
import pytest
from nasbackup.errors import RestoreRefused, VmNotStopped
from nasbackup.hypervisor import new_disk
from nasbackup.model import BackupType, Reason, Target
from nasbackup.restore import files
from nasbackup.steps import Site
from nasbackup.steps import restore as steps
from nasbackup.tools import node
from nasbackup.transfer.qemu_nbd import QemuNbd

from lab import vm as lab
from tests.integration.restoring import (
    assert_no_trace,
    bench_of,
    contents,
    dry_run,
    identical,
    request,
    whole_restore,
)
from tests.integration.story import Story, tool


def two_backups(story: Story) -> tuple[Any, Any]:
    """A full and an incremental with other content; then the guest went on, and was shut down."""
    story.machine.guest_io("vda", "write -P 0x11 0 4M")
    story.machine.guest_io("vdb", "write -P 0x12 1M 1M")
    first = story.backup()
    story.machine.guest_io("vda", "write -P 0x21 2M 1M", "write -z 3M 64k")
    second = story.backup()
    story.machine.guest_io("vda", "write -P 0x66 0 8M")
    story.machine.guest_io("vdb", "write -P 0x67 0 2M")
    story.machine.destroy()
    return first, second


def assert_is(story: Story, backup: Any) -> None:
    by_source = {volume.source: volume.name for volume in backup.volumes}
    for image in story.machine.disks.values():
        assert identical(image, story.frozen[backup.external_id][by_source[str(image)]]), image


def test_both_volumes_are_replaced_the_old_ones_kept_and_the_next_backup_is_a_full(story: Story, site: Site) -> None:
    first, second = two_backups(story)
    before = contents(story.machine)
    owners = {path: (path.stat().st_uid, path.stat().st_mode) for path in story.machine.disks.values()}
    assert story.active_checkpoint() is not None

    plan = dry_run(site, second, Target.IN_PLACE)
    assert [volume.path for volume in plan.volumes] == [str(path) for path in story.machine.disks.values()]
    assert plan.space[0].needs > 0
    assert plan.space[0].has > plan.space[0].needs
    assert contents(story.machine) == before, "a dry run changes nothing"
    assert_no_trace(site, story.machine.directory)

    result = whole_restore(site, second, Target.IN_PLACE)
    assert_is(story, second)
    assert story.active_checkpoint() is None, "a VM of which a volume was replaced has no active checkpoint"
    assert [checkpoint.getName() for checkpoint in story.machine.domain.listAllCheckpoints()] == []
    assert {path: (path.stat().st_uid, path.stat().st_mode) for path in story.machine.disks.values()} == owners
    kept = {Path(path) for path in result.kept}
    assert {path.name.split(".before-")[0] for path in kept} == {"vda.qcow2", "vdb.qcow2"}
    for path in kept:
        target = path.name[:3]
        raw = story.work / "old.raw"
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw))
        assert raw.read_bytes() == before[target]
    assert_no_trace(site, story.machine.directory)

    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x31 0 64k")
    third = story.backup()
    assert (third.type, third.reason) == (BackupType.FULL, Reason.NO_ACTIVE_CHECKPOINT)
    story.machine.guest_io("vda", "write -P 0x32 0 64k")
    assert story.backup().type is BackupType.INCREMENTAL
    story.assert_everything_restores()

    story.machine.destroy()
    result = whole_restore(site, first, Target.IN_PLACE, keep_old=False, start=True)
    assert result.kept == ()
    assert story.machine.running
    assert_is(story, first)
    assert {path for path in story.machine.directory.iterdir() if ".before-" in path.name} == kept


def test_one_volume_alone(story: Story, site: Site) -> None:
    first, _ = two_backups(story)
    before = contents(story.machine)
    name = next(volume.name for volume in first.volumes if volume.target == "vdb")
    result = whole_restore(site, first, Target.IN_PLACE, volumes=(name,))
    assert identical(story.machine.disks["vdb"], story.frozen[first.external_id][name])
    assert contents(story.machine)["vda"] == before["vda"]
    assert any("the others stay" in note for note in result.notes)
    assert story.active_checkpoint() is None
    story.machine.start()
    assert story.backup().type is BackupType.FULL


def refused(story: Story, site: Site, backup: Any, *, kind: type[Exception], match: str, **options: Any) -> None:
    """Nothing changes, whether it is planned or done."""
    running, active = story.machine.running, story.active_checkpoint()
    before = None if running else contents(story.machine)
    listing = sorted(path.name for path in story.machine.directory.iterdir())
    for attempt in (dry_run, whole_restore):
        with pytest.raises(kind, match=match):
            attempt(site, backup, Target.IN_PLACE, **options)
    assert story.active_checkpoint() == active, "the chain goes on"
    assert before is None or contents(story.machine) == before
    assert sorted(path.name for path in story.machine.directory.iterdir()) == listing
    assert_no_trace(site, story.machine.directory)


def test_a_running_vm_is_refused(story: Story, site: Site) -> None:
    backup = story.backup()
    refused(story, site, backup, kind=VmNotStopped, match="is running: shut it down first")
    story.machine.domain.suspend()
    refused(story, site, backup, kind=VmNotStopped, match="is paused")


def test_a_vm_with_other_disks_is_refused_with_every_reason(story: Story, site: Site) -> None:
    backup = story.backup()
    story.machine.attach(volume=lab.Volume(size=1 << 20))
    story.machine.destroy()
    tool("qemu-img", "resize", str(story.machine.disks["vdb"]), "12M")
    refused(
        story,
        site,
        backup,
        kind=RestoreRefused,
        match=r"volume vdb has 12582912 bytes now and 9437696 in the backup; its disk vdc \(.*\) is not in the backup",
    )
    story.machine.domain.detachDeviceFlags(
        lab.disk_xml(target="vda", path=story.machine.disks["vda"]), libvirt.VIR_DOMAIN_AFFECT_CONFIG
    )
    refused(story, site, backup, kind=RestoreRefused, match="volume vda .* is none of its disks any more")


def test_a_vm_with_snapshots_is_refused(story: Story, site: Site) -> None:
    story.variables["nas.backup.incremental.enabled"] = "false"  # libvirt makes no snapshots beside checkpoints
    backup = story.backup()
    story.machine.destroy()
    story.machine.domain.snapshotCreateXML("<domainsnapshot><name>before update</name></domainsnapshot>")
    refused(story, site, backup, kind=RestoreRefused, match=r"it has snapshots \(before update\)")


def test_a_vm_that_is_gone_or_has_its_memory_saved_is_refused(story: Story, site: Site) -> None:
    backup = story.backup()
    story.machine.domain.managedSave()
    refused(story, site, backup, kind=RestoreRefused, match="its memory is saved")
    story.machine.domain.managedSaveRemove()
    definition = story.machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    active = story.active_checkpoint()
    directory = story.machine.directory
    story.machine.domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    )
    listing = sorted(directory.iterdir())
    with pytest.raises(RestoreRefused, match=r"does not define it .* restore to a new VM"):
        whole_restore(site, backup, Target.IN_PLACE)
    assert sorted(directory.iterdir()) == listing
    story.machine.connection.defineXML(definition)
    assert story.active_checkpoint() == active


def test_a_vm_whose_definition_names_what_lies_below_a_disk_is_refused(story: Story, site: Site) -> None:
    """QEMU would show the old base through the holes of the new volume."""
    backup = story.backup()
    story.machine.destroy()
    base = story.machine.directory / "base.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(base), "24M")
    definition = story.machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    below = f"<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
    story.machine.connection.defineXML(definition.replace("<target dev='vda'", f"{below}<target dev='vda'"))
    refused(story, site, backup, kind=RestoreRefused, match=r"what lies below vda .* take that out with `virsh edit`")


def test_a_swap_that_was_complete_is_never_taken_back(
    story: Story, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the catalog knew: the VM can start by then, and what it writes is worth more than its past."""
    first, _ = two_backups(story)
    bench, asked = bench_of(site), request(first, Target.IN_PLACE)
    steps.plan(bench, request=asked)
    for volume in first.volumes:
        steps.restore_volume(bench, backup=first, key=asked.key, volume=volume.name)

    class Killed(BaseException):
        pass

    def cut_off(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", cut_off)
        with pytest.raises(Killed):
            steps.commit(bench, backup=first, key=asked.key)
    with pytest.raises(RestoreRefused, match="was cut off, or is at its last step"):
        dry_run(site, first, Target.IN_PLACE)
    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x99 0 64k", "flush")
    for _ in range(2):  # the retry, with the VM running; and the teardown
        steps.commit(bench, backup=first, key=asked.key)
    steps.give_back(bench, backup=first, key=asked.key)
    story.machine.guest_io("vda", "read -P 0x99 0 64k", "read -P 0x11 64k 64k")
    assert_no_trace(site, story.machine.directory)


def test_a_vm_that_is_started_at_the_last_moment_wins(
    story: Story, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the first rename: there the images are locked, and QEMU says so."""
    first, _ = two_backups(story)
    take_places = files.take_places
    told = []

    def started_meanwhile(moved: Any) -> None:
        with pytest.raises(libvirt.libvirtError) as caught:
            story.machine.domain.create()
        told.append(str(caught.value))
        take_places(moved)

    monkeypatch.setattr(files, "take_places", started_meanwhile)
    whole_restore(site, first, Target.IN_PLACE)
    assert "lock" in told[0]
    assert_is(story, first)
    story.machine.start()


def test_somebody_else_has_an_image_open(story: Story, site: Site) -> None:
    first, _ = two_backups(story)
    before = contents(story.machine)
    image = story.machine.disks["vdb"]
    with open_in_qemu(image), pytest.raises(VmNotStopped, match=r"a process has .*vdb.qcow2 open"):
        whole_restore(site, first, Target.IN_PLACE)
    assert contents(story.machine) == before
    assert_no_trace(site, story.machine.directory)
    whole_restore(site, first, Target.IN_PLACE)
    assert_is(story, first)


def open_in_qemu(image: Path) -> Any:
    return QemuNbd(node(image, "qcow2"), clients=1, read_only=False)


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_rename_that_fails_is_taken_back(
    story: Story, site: Site, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Two volumes are four renames; whichever fails, the VM has its old volumes, and a retry works."""
    first, _ = two_backups(story)
    before = contents(story.machine)
    rename, count = Path.rename, iter(range(1, 100))

    def sometimes(self: Path, target: Any) -> Any:
        if next(count) == failing:
            raise OSError(5, "Input/output error", str(self))
        return rename(self, target)

    with monkeypatch.context() as patch:
        take_places = files.take_places

        def take(moved: Any) -> None:
            with monkeypatch.context() as inner:
                inner.setattr(Path, "rename", sometimes)
                take_places(moved)

        patch.setattr(files, "take_places", take)
        with pytest.raises(Exception, match="Input/output error"):
            whole_restore(site, first, Target.IN_PLACE)
    assert contents(story.machine) == before
    assert_no_trace(site, story.machine.directory)
    assert [path.name for path in story.machine.directory.iterdir() if ".before-" in path.name] == []
    whole_restore(site, first, Target.IN_PLACE)
    assert_is(story, first)


def with_a_raw_disk(story: Story) -> Path:
    """The VM's third disk, of 1 MiB, all 0x71."""
    image = story.machine.directory / "plain.img"
    image.write_bytes(b"\x71" * (1 << 20))
    story.machine.domain.attachDeviceFlags(
        new_disk.disk_xml(file=str(image), image_format="raw", target="vdc", bus="virtio"),
        libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_AFFECT_LIVE,
    )
    return image


def test_a_raw_volume_stays_raw(story: Story, site: Site) -> None:
    image = with_a_raw_disk(story)
    backup = story.backup()
    story.machine.destroy()
    image.write_bytes(b"\x72" * (1 << 20))
    whole_restore(site, backup, Target.IN_PLACE)
    assert image.read_bytes() == b"\x71" * (1 << 20)
    story.machine.start()
    assert story.backup().type is BackupType.FULL


def test_disks_that_are_no_longer_those_of_the_plan_are_not_replaced(story: Story, site: Site) -> None:
    """Hours lie between the plan and the swap. A disk that was moved meanwhile would stay as it is."""
    plain = with_a_raw_disk(story)
    backup = story.backup()
    story.machine.destroy()
    active = story.active_checkpoint()
    vdb = story.machine.disks["vdb"]
    definition = story.machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    bench, asked = bench_of(site), request(backup, Target.IN_PLACE)
    bench.lease(uuid=backup.vm_uuid, vm=backup.vm).join()
    steps.plan(bench, request=asked)

    def refused_now(step: Any, *, match: str) -> None:
        before = {path.name: path.read_bytes() for path in story.machine.directory.iterdir()}
        with pytest.raises(RestoreRefused, match=match):
            step()
        assert {path.name: path.read_bytes() for path in story.machine.directory.iterdir()} == before

    def copied() -> None:
        for volume in backup.volumes:
            steps.restore_volume(bench, backup=backup, key=asked.key, volume=volume.name)

    def swapped() -> None:
        steps.commit(bench, backup=backup, key=asked.key)

    elsewhere = vdb.with_name("elsewhere.qcow2")
    elsewhere.write_bytes(vdb.read_bytes())
    moved = definition.replace(str(vdb), str(elsewhere))
    for number, step in enumerate((copied, swapped)):
        if number:
            copied()
        story.machine.connection.defineXML(moved)
        refused_now(step, match=f"volume vdb .{vdb}. is none of its disks any more")
        story.machine.connection.defineXML(definition)
        tool("qemu-img", "resize", str(vdb), "12M")
        refused_now(step, match="volume vdb has 12582912 bytes now and 9437696 in the backup")
        tool("qemu-img", "resize", "--shrink", str(vdb), "9437696")
        content = plain.read_bytes()
        tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(plain), f"{plain}.new")
        Path(f"{plain}.new").replace(plain)
        story.machine.connection.defineXML(definition.replace("type='raw'", "type='qcow2'"))
        refused_now(
            step,
            match=r"was changed since the restore was planned \(volume plain was .*plain.img \(raw, 1048576 bytes\)",
        )
        plain.write_bytes(content)
        story.machine.connection.defineXML(definition)
    assert story.active_checkpoint() == active, "nothing was replaced: the chain goes on"
    swapped()
    steps.give_back(bench, backup=backup, key=asked.key)
    assert plain.read_bytes() == b"\x71" * (1 << 20)
    assert_no_trace(site, story.machine.directory)


def test_a_block_device_is_refused_with_the_commands_that_do_it(story: Story, site: Site) -> None:
    backup = story.backup()
    story.machine.destroy()
    image = story.machine.disks["vdb"]
    real = image.rename(image.with_name("real one.qcow2"))
    image.symlink_to(real)
    refused(
        story,
        site,
        backup,
        kind=RestoreRefused,
        match=rf"`qemu-img convert -n -f qcow2 -O qcow2 IMAGE {image}`, and have the next backup be mode=full",
    )
