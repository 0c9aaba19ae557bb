"""What an operator meets at night: wrong ids, half-gone backups, no room, a NAS that goes, two at once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nasbackup.catalog import deletions, leases, restores
from nasbackup.errors import (
    BackupNotFound,
    BackupNotRestorable,
    NasBackupError,
    NotARepository,
    NotEnoughSpace,
    RestoreSuperseded,
    TargetFull,
    VmBusy,
)
from nasbackup.model import BackupType, Target
from nasbackup.restore.image import Located, locate, restore_images
from nasbackup.restore.plan import parse_moment
from nasbackup.steps import Site
from nasbackup.steps import restore as steps

from tests.integration.restoring import (
    assert_no_trace,
    bench_of,
    contents,
    dry_run,
    identical,
    request,
    vm,
    whole_restore,
)
from tests.integration.story import Story

TARGETS = [Target.NEW_VM, Target.IN_PLACE, Target.VOLUME]


def options_of(story: Story, target: Target, to: Path) -> dict[str, Any]:
    return {
        Target.NEW_VM: {"new_name": f"{story.machine.name}-new", "to": str(to)},
        Target.IN_PLACE: {},
        Target.VOLUME: {"volumes": ("vda",), "to": str(to)},
    }[target]


@pytest.fixture
def to(story: Story) -> Iterator[Path]:
    yield story.machine.directory / "new"
    vm(story.machine, f"{story.machine.name}-new").remove()


def layer(story: Story, backup: Any, name: str = "vda") -> Path:
    volume = next(volume for volume in backup.volumes if volume.name == name)
    return Path(story.site.repository.path) / backup.external_id / volume.file


def damage(path: Path) -> None:
    """A byte of data in the middle of the file, which only reading finds."""
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        old = file.read(1)
        file.seek(-4096, 2)
        file.write(bytes([old[0] ^ 0xFF]))


def unchanged(story: Story, site: Site, to: Path, before: Any) -> None:
    assert contents(story.machine) == before
    assert not to.exists() or list(to.iterdir()) == []
    assert_no_trace(site, to, story.machine.directory)
    assert set(story.machine.disks) == {"vda", "vdb"}
    assert f"{story.machine.name}-new" not in [d.name() for d in story.machine.connection.listAllDomains()]


# --- ten layers -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_chain_of_ten_restores_byte_identical_at_every_position(story: Story, site: Site, to: Path) -> None:
    made = []
    for number in range(10):
        story.machine.guest_io("vda", f"write -P {number + 1} {number}M 3M", f"write -z {number * 2}M 64k")
        story.machine.guest_io("vdb", f"write -P {number + 1} {number * 64}k 128k", f"write -P {number + 1} 9M 512")
        made.append(story.backup())
    assert [backup.chain_position for backup in made] == list(range(10))
    story.machine.destroy()
    for number, backup in enumerate(made):
        result = whole_restore(site, backup, Target.IN_PLACE, keep_old=False)
        for name, file in result.volumes.items():
            assert identical(Path(file), story.frozen[backup.external_id][name]), (number, name)
        story.assert_restores(backup.external_id)
    assert len({story.frozen[backup.external_id]["vda"].read_bytes() for backup in made}) == 10, "each is another"
    name = f"{story.machine.name}-new"
    result = whole_restore(site, made[-1], Target.NEW_VM, new_name=name, to=str(to), start=True)
    for volume, file in result.volumes.items():
        assert identical(Path(file), story.frozen[made[-1].external_id][volume])


# --- layers that are broken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_broken_layer_names_the_newest_older_backup_that_is_whole(
    story: Story, site: Site, to: Path, target: Target
) -> None:
    made = []
    for number in range(4):
        story.machine.guest_io("vda", f"write -P {number + 1} {number}M 1M")
        made.append(story.backup())
    story.machine.destroy()
    before = contents(story.machine)
    damage(layer(story, made[2]))
    options = options_of(story, target, to)
    with pytest.raises(BackupNotRestorable) as caught:
        whole_restore(site, made[3], target, **options)
    assert f"layer of {made[2].external_id} is broken" in str(caught.value)
    assert f"restore {made[1].external_id}, the newest older one that is whole" in str(caught.value)
    unchanged(story, site, to, before)
    result = whole_restore(site, made[1], target, **options)
    for name, file in result.volumes.items():
        assert identical(Path(file), story.frozen[made[1].external_id][name])


def test_a_broken_full_leaves_none_and_is_named_before_hours_are_spent_on_older_ones(
    story: Story, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    story.machine.guest_io("vda", "write -P 1 0 1M")
    first = story.backup()
    second = story.backup()
    damage(layer(story, first))
    located, told = locate(site.database, external_id=second.external_id), list[str]()

    def older() -> Iterator[Located]:
        told.extend(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
        return located.older()

    with pytest.raises(BackupNotRestorable, match=f"layer of {first.external_id} is broken.*; no older one is"):
        restore_images(replace(located, older=older), to=tmp_path / "images")
    assert not (tmp_path / "images").exists()
    assert [f"layer of {first.external_id} is broken" in sentence for sentence in told] == [True]


@pytest.mark.parametrize("gone", ["layer", "manifest", "definition"])
def test_a_backup_that_is_half_gone(story: Story, site: Site, to: Path, gone: str) -> None:
    story.machine.guest_io("vda", "write -P 1 0 1M")
    first = story.backup()
    second = story.backup()
    before = contents(story.machine)
    directory = Path(site.repository.path) / second.external_id
    {"layer": layer(story, first), "manifest": directory / "manifest.json", "definition": directory / "domain.xml"}[
        gone
    ].unlink()
    with pytest.raises(NasBackupError) as caught:
        whole_restore(site, second, Target.NEW_VM, **options_of(story, Target.NEW_VM, to))
    assert {"layer": "the file is missing", "manifest": "there is no manifest", "definition": "domain.xml"}[
        gone
    ] in str(caught.value)
    unchanged(story, site, to, before)


@pytest.mark.parametrize("target", TARGETS)
def test_a_backup_that_is_unknown_or_delete_pending(story: Story, site: Site, to: Path, target: Target) -> None:
    first = story.backup()
    story.backup()
    with site.database.transaction() as cursor:
        deletions.mark(cursor, backup_id=first.backup_id)
    story.machine.destroy()
    before = contents(story.machine)
    options = options_of(story, target, to)
    with pytest.raises(BackupNotRestorable, match="somebody has deleted it"):
        whole_restore(site, first, target, **options)
    unchanged(story, site, to, before)
    asked = request(first, target, **options)
    with pytest.raises(BackupNotFound):
        steps.plan(bench_of(site), request=type(asked)(**{**vars(asked), "backup": "x/2001.01.01.00.00.00"}))
    unchanged(story, site, to, before)


def test_the_newest_before_a_moment(story: Story, site: Site) -> None:
    made = [story.backup() for _ in range(3)]

    def latest(**options: Any) -> Any:
        with site.database.transaction() as cursor:
            return restores.latest_of(cursor, **options)

    assert latest(vm=story.machine.name).external_id == made[2].external_id
    assert latest(vm=story.machine.name, before=made[2].created_at).external_id == made[1].external_id
    assert latest(vm=story.machine.name, before=made[0].created_at) is None
    assert latest(vm="no such VM") is None
    at = made[1].created_at + timedelta(milliseconds=1)
    assert latest(vm=story.machine.name, before=parse_moment(at.isoformat())).external_id == made[1].external_id


# --- room -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(story: Story) -> Iterator[Path]:
    """A file system with less room than the restore needs."""
    path = story.machine.directory / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
        path.rmdir()


def test_too_little_space_is_said_before_with_numbers(story: Story, site: Site, small: Path, tmp_path: Path) -> None:
    story.machine.guest_io("vda", "write -P 1 0 8M")
    backup = story.backup()
    options = {"new_name": f"{story.machine.name}-new", "to": str(small)}
    for attempt in (dry_run, whole_restore):
        with pytest.raises(NotEnoughSpace) as caught:
            attempt(site, backup, Target.NEW_VM, **options)
        assert caught.value.data["has"] == 2 << 20
        assert 8 << 20 < caught.value.data["needs"] < 12 << 20
    with pytest.raises(NotEnoughSpace, match="Nothing was written"):
        restore_images(locate(site.database, external_id=backup.external_id), to=small / "images")
    assert list(small.iterdir()) == []
    assert_no_trace(site, small)


def test_space_that_goes_away_meanwhile(story: Story, site: Site, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story.machine.guest_io("vda", "write -P 1 0 8M")
    backup = story.backup()
    monkeypatch.setattr("nasbackup.restore.files.require_space", lambda _path, needs: needs)
    with pytest.raises(TargetFull, match="No space left"):
        whole_restore(site, backup, Target.NEW_VM, new_name=f"{story.machine.name}-new", to=str(small))
    assert list(small.iterdir()) == []
    assert_no_trace(site, small)


# --- the NAS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_nas_that_goes_away_in_the_midst(
    story: Story, site: Site, to: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an unmounted share: the path is there, and empty. The retry, when it is back, goes on."""
    story.machine.guest_io("vda", "write -P 1 0 4M")
    story.backup()
    backup = story.backup()
    story.machine.destroy()
    before = contents(story.machine)
    root, away = Path(site.repository.path), story.work / "away"

    def unmount(*_: Any, **__: Any) -> None:
        root.rename(away)
        root.mkdir()

    real = steps.volume.require_whole
    options = options_of(story, target, to)

    def whole_then_gone(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        unmount()

    with monkeypatch.context() as patch:
        patch.setattr(steps.volume, "require_whole", whole_then_gone)
        with pytest.raises(NotARepository) as caught:
            whole_restore(site, backup, target, **options)
        assert caught.value.retryable
    unchanged(story, site, to, before)
    with pytest.raises(NotARepository):
        whole_restore(site, backup, target, **options)
    unchanged(story, site, to, before)
    root.rmdir()
    away.rename(root)
    result = whole_restore(site, backup, target, **options)
    for name, file in result.volumes.items():
        assert identical(Path(file), story.frozen[backup.external_id][name])


# --- two at once ----------------------------------------------------------------------------------------------


def test_two_restores_of_one_vm_and_a_backup_meanwhile(story: Story, site: Site, to: Path) -> None:
    backup = story.backup()
    bench = bench_of(site, holder="the first")
    first = request(backup, Target.VOLUME, volumes=("vda",), to=str(to))
    steps.plan(bench, request=first)
    other = bench_of(site, holder="the second")
    with pytest.raises(VmBusy, match="in use by the first"):
        steps.plan(other, request=request(backup, Target.IN_PLACE))
    with pytest.raises(VmBusy):
        story.decide()
    steps.restore_volume(bench, backup=backup, key=first.key, volume="vda")
    steps.commit(bench, backup=backup, key=first.key)
    steps.give_back(bench, backup=backup, key=first.key)
    assert story.backup().type is BackupType.INCREMENTAL


def test_one_that_was_left_alone_is_undone_by_the_next_and_told_so(story: Story, site: Site, to: Path) -> None:
    """Its lease has expired, or was given up while somebody was asked; then it comes back and finds that it is late."""
    story.machine.guest_io("vda", "write -P 1 0 4M")
    backup = story.backup()
    story.machine.destroy()
    bench = bench_of(site, holder="the first")
    first = request(backup, Target.VOLUME, volumes=("vda",), to=str(to))
    steps.plan(bench, request=first)
    steps.restore_volume(bench, backup=backup, key=first.key, volume="vda")
    assert len(list(to.iterdir())) == 1
    with site.database.transaction() as cursor:
        leases.release_of(cursor, vm_uuid=backup.vm_uuid, holder="the first")
    whole_restore(site, backup, Target.IN_PLACE)
    assert list(to.iterdir()) == []
    for late in (
        lambda: steps.restore_volume(bench, backup=backup, key=first.key, volume="vda"),
        lambda: steps.commit(bench, backup=backup, key=first.key),
    ):
        with pytest.raises(RestoreSuperseded, match="Start it again"):
            late()
    steps.give_back(bench, backup=backup, key=first.key)
    assert set(story.machine.disks) == {"vda", "vdb"}
    shutil.rmtree(to)
    assert_no_trace(site, story.machine.directory)
