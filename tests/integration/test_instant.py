"""A VM runs from a backup at once and becomes independent of it; the backup is only read."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nasbackup.catalog import readings
from nasbackup.errors import InstantBusy, InstantUnfinished, TargetExists
from nasbackup.hypervisor import connect, live
from nasbackup.model import BackupStatus, BackupType
from nasbackup.restore.image import locate
from nasbackup.steps import instant
from nasbackup.steps.instant import InstantVm

from lab import nas as lab_nas
from lab import vm as lab
from lab.places import make_directory
from tests.integration.story import Story, tool
from tests.integration.test_cli import answer, nasbackup, refused
from tests.integration.test_mount import digests, eventually

MIB = 1 << 20


@pytest.fixture
def copy(story: Story, libvirt_connection: Any) -> Iterator[lab.LabVm]:
    """The VM that is made, as a handle; removed afterwards."""
    machine = lab.LabVm(connection=libvirt_connection, name=f"{story.machine.name}-instant")
    machine.remove()
    make_directory(machine.directory)
    yield machine
    machine.remove()


def sockets(story: Story) -> list[Path]:
    return list(Path(story.site.host.socket_dir).glob("*instant-*"))  # and what stands for a lock


def servers() -> list[str]:
    """Command lines of processes that lend an image to a VM."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command.startswith("qemu-nbd") and "/instant-" in command:
            found.append(command)
    return found


def marks(story: Story) -> list[str]:
    with story.site.database.transaction() as cursor:
        cursor.execute("SELECT reader FROM reading")
        return [row["reader"] for row in cursor.fetchall()]


def test_a_vm_runs_from_the_backup_and_is_copied_out_of_it(story: Story, copy: lab.LabVm, tmp_path: Path) -> None:
    database, root = story.site.database, Path(story.site.repository.path)
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    story.backup()
    story.machine.guest_io("vda", "write -P 0x12 1M 2M")
    child = story.backup()
    before = digests(root)

    done = answer_of(
        nasbackup(
            database, "instant", child.external_id, "--new-name", copy.name, "--to", str(copy.directory), "--json"
        )
    )
    assert (done["vm"], done["independent"]) == (copy.name, True)
    assert copy.running
    assert copy.uuid == done["uuid"] != story.machine.uuid
    assert digests(root) == before, "to the byte, the mode and the owner"
    eventually(lambda: servers() == [])
    assert (sockets(story), marks(story)) == ([], [])

    for description in (copy.domain.XMLDesc(), copy.domain.XMLDesc(2)):  # running, and at its next start
        assert "nbd" not in description
    root.rename(tmp_path / "unmounted")
    copy.guest_io("vda", "read -P 0x11 0 1M", "read -P 0x12 1M 2M", "read -P 0 3M 21M", "write -P 0x99 5M 1M")
    copy.destroy()
    for volume in done["volumes"]:
        assert "backing file" not in tool("qemu-img", "info", volume["file"])
    copy.start()
    copy.guest_io("vda", "read -P 0x11 0 1M", "read -P 0x99 5M 1M", "read -P 0 6M 18M")
    (tmp_path / "unmounted").rename(root)
    # The source knows nothing of it: its chain goes on.
    assert story.backup().type is BackupType.INCREMENTAL


def answer_of(ended: Any) -> Any:
    return json.loads(ended.stdout)


def begin(story: Story, copy: lab.LabVm, external_id: str) -> InstantVm:
    host = story.site.host
    with connect(host) as hypervisor:
        return instant.start(
            hypervisor,
            locate(
                story.site.database,
                external_id=external_id,
                reader=instant.reader_of(name=copy.name, host=host.name),
            ),
            database=story.site.database,
            name=copy.name,
            to=copy.directory,
            socket_dir=host.socket_dir,
        )


def test_it_goes_on_after_a_crash_and_meanwhile_the_backup_is_kept(
    story: Story, copy: lab.LabVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, root = story.site.database, Path(story.site.repository.path)
    story.machine.guest_io("vda", "write -P 0x21 0 2M")
    backup = story.backup()
    before = digests(root)
    with monkeypatch.context() as killed:
        killed.setattr(live, "begin_next_pull", lambda *_: None)  # killed right before it
        vm = begin(story, copy, backup.external_id)
    assert marks(story) == [f"VM {copy.name} on {story.site.host.name}, which runs from it"]
    copy.guest_io("vda", "read -P 0x21 0 2M", "write -P 0x22 0 1M")
    with connect(story.site.host) as hypervisor:
        with pytest.raises(InstantUnfinished, match="waiting for it was ended"):
            instant.finish(hypervisor, vm, database=database, stop=lambda: True)
        (kept,) = answer(database, "delete", backup.external_id)
        assert kept["kept_by"] == marks(story)
        assert story.load(backup.backup_id).status is BackupStatus.DELETE_PENDING
        copy.destroy()
        with pytest.raises(InstantUnfinished, match="it was shut down"):
            instant.finish(hypervisor, vm, database=database)
    eventually(lambda: servers() == [])  # with its only client
    with monkeypatch.context() as killed:
        killed.setattr(live, "begin_next_pull", lambda *_: None)
        begin(story, copy, backup.external_id)
    copy.guest_io("vda", "read -P 0x22 0 1M", "read -P 0x21 1M 1M")
    vm = begin(story, copy, backup.external_id)  # while it runs: the same again
    with connect(story.site.host) as hypervisor:
        instant.finish(hypervisor, vm, database=database)
    assert digests(root) == before
    assert (sockets(story), marks(story)) == ([], [])
    eventually(lambda: servers() == [])
    shutil.rmtree(root / backup.external_id)
    copy.guest_io("vda", "read -P 0x22 0 1M", "read -P 0x21 1M 1M")


def test_of_two_that_start_it_the_second_leaves_the_first_one_alone(
    story: Story, copy: lab.LabVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first still measures how much room it needs, which takes long."""
    story.machine.guest_io("vda", "write -P 0x31 0 2M")
    backup = story.backup()
    measure, second = instant.image_bytes, []

    def slowly(*args: Any, **kwargs: Any) -> int:
        if not second:
            second.append("came")
            with pytest.raises(InstantBusy, match=f"VM {copy.name} is being started from backup {backup.external_id}"):
                begin(story, copy, backup.external_id)
        return measure(*args, **kwargs)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(instant, "image_bytes", slowly)
        vm = begin(story, copy, backup.external_id)
    assert second == ["came"]
    copy.guest_io("vda", "read -P 0x31 0 2M")
    assert marks(story) == [f"VM {copy.name} on {story.site.host.name}, which runs from it"]
    with connect(story.site.host) as hypervisor:
        instant.finish(hypervisor, vm, database=story.site.database)
    assert (sockets(story), marks(story)) == ([], [])


def test_what_an_undefined_one_has_written_is_not_taken_for_a_leftover(story: Story, copy: lab.LabVm) -> None:
    backup = story.backup()
    begin(story, copy, backup.external_id)
    copy.guest_io("vda", "write -P 0x41 0 1M", "flush")
    image = copy.disks["vda"]
    copy.destroy()
    copy.domain.undefine()
    before = image.read_bytes()
    with pytest.raises(TargetExists, match=re.escape(f"{image} exists already")):
        begin(story, copy, backup.external_id)
    assert image.read_bytes() == before


def test_what_is_refused_leaves_nothing(story: Story, copy: lab.LabVm, tmp_path: Path) -> None:
    database, root = story.site.database, Path(story.site.repository.path)
    full = story.backup()
    child = story.backup()

    def sentence(backup: str, *, name: str = copy.name, to: Path = copy.directory) -> str:
        return refused(database, "instant", backup, "--new-name", name, "--to", str(to))

    assert "There is no backup" in sentence("i-9/2026.01.01.00.00.00")
    assert f"has a VM {story.machine.name!r}" in sentence(child.external_id, name=story.machine.name)
    assert "a VM's name is no path" in sentence(child.external_id, name="../x")
    other = copy.directory / f"{child.volumes[1].name}.qcow2"
    other.write_text("somebody's")
    assert f"{other} exists already" in sentence(child.external_id)
    assert [path.name for path in copy.directory.iterdir()] == [other.name]
    assert other.read_text() == "somebody's"
    other.unlink()
    with lab_nas.small_nas(tmp_path / "small", size=64 << 10) as small:
        assert "bytes free" in sentence(child.external_id, to=small / "to")
        assert list(small.iterdir()) == []
    # Where QEMU's user cannot come: everything is undone.
    assert copy.name in sentence(child.external_id, to=tmp_path / "private")
    assert not (tmp_path / "private").exists()
    layer = root / full.external_id / full.volumes[0].file
    layer.rename(tmp_path / "taken away")
    assert f"layer of {full.external_id} is broken" in sentence(child.external_id)
    (tmp_path / "taken away").rename(layer)
    nasbackup(database, "delete", full.external_id)
    assert "it is DeletePending" in sentence(full.external_id) or "deleted it" in sentence(full.external_id)
    with database.transaction() as cursor:  # but to a VM of this name, that runs from it since before
        reader = instant.reader_of(name=copy.name, host=platform.node())
        readings.begin(cursor, backup_id=full.backup_id, reader=reader, seconds=60, held=True)
    other.write_text("somebody's")
    assert f"{other} exists already" in sentence(full.external_id)
    other.unlink()

    assert copy.name not in [domain.name() for domain in copy.connection.listAllDomains()]
    assert list(copy.directory.iterdir()) == []
    eventually(lambda: servers() == [])
    assert (sockets(story), marks(story)) == ([], [])
