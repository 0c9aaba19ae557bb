"""The repository: only the right one is written to, and what is visible in it is complete."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from nasbackup import layout
from nasbackup.errors import NasIo, NotARepository, RepositoryFull
from nasbackup.model import Repository, RepositoryType
from nasbackup.nas import publish
from nasbackup.nas.repository import free_bytes, open_root, read_identity, register

from tests.integration.nas_side import (
    EXTERNAL_ID,
    PUBLISHED,
    STAMP,
    VM,
    content,
    do_publish,
    made,
    root_of,
)


@pytest.fixture
def nas(tmp_path: Path) -> Repository:
    """A repository without a catalog: this is the NAS side alone."""
    (tmp_path / "nas").mkdir()
    nas = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(tmp_path / "nas"))
    register(nas)
    return nas


# --- is it the repository? ------------------------------------------------------------------------------------


def test_registering_again_finds_the_same_identity_and_changes_nothing(nas: Repository) -> None:
    before = content(root_of(nas))
    identity = read_identity(nas)
    assert identity == str(UUID(identity))
    assert register(nas) == identity
    assert content(root_of(nas)) == before
    assert open_root(nas, identity=identity) == root_of(nas)


def test_two_repositories_are_never_the_same_one(nas: Repository, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(tmp_path / "other"))
    identity = register(other)
    with pytest.raises(NotARepository, match=f"its marker says {read_identity(nas)}, the catalog says {identity}"):
        open_root(nas, identity=identity)


def test_a_path_without_marker_is_an_empty_mount_point(nas: Repository) -> None:
    identity = str(read_identity(nas))
    (root_of(nas) / layout.MARKER).unlink()
    assert read_identity(nas) is None
    with pytest.raises(NotARepository, match=r"no marker file.*Is the NAS mounted"):
        open_root(nas, identity=identity)


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"uuid": null}',
        b'{"uuid": "x"}',
        b'{"uuid": 5}',
        b'{"uuid": []}',
    ],
)
def test_a_damaged_marker_is_told_and_never_overwritten(nas: Repository, marker: bytes) -> None:
    identity = str(read_identity(nas))
    (root_of(nas) / layout.MARKER).write_bytes(marker)
    for attempt in (lambda: open_root(nas, identity=identity), lambda: register(nas)):
        with pytest.raises(NotARepository, match="its marker file is damaged"):
            attempt()
    assert (root_of(nas) / layout.MARKER).read_bytes() == marker


def test_a_marker_that_cannot_be_read_is_an_io_error(nas: Repository) -> None:
    (root_of(nas) / layout.MARKER).unlink()
    (root_of(nas) / layout.MARKER).mkdir()
    with pytest.raises(NasIo, match="Reading the marker on repository nas_test failed: Is a directory"):
        read_identity(nas)


def test_only_an_existing_absolute_directory_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for path in ("relative", str(tmp_path / "missing"), str(tmp_path / "file")):
        with pytest.raises(NotARepository, match="not an existing absolute directory"):
            register(Repository(name="nas_test", type=RepositoryType.LOCAL, path=path))
    assert sorted(tmp_path.rglob("*")) == before


# --- publishing -----------------------------------------------------------------------------------------------


def test_only_the_named_attempts_are_published(nas: Repository) -> None:
    folder = made(nas)
    (folder / "something-else").write_bytes(b"left by nobody knows whom")
    final = do_publish(nas)
    assert final == root_of(nas) / EXTERNAL_ID
    assert content(final) == PUBLISHED
    assert not folder.exists()


def test_publishing_again_changes_nothing(nas: Repository) -> None:
    made(nas)
    final = do_publish(nas)
    before = {path: path.stat().st_mtime_ns for path in (final, *final.iterdir())}
    again = publish.publish(nas, root=root_of(nas), external_id=EXTERNAL_ID, attempts={"x": "y"}, manifest=b"another")
    assert again == final
    assert {path: path.stat().st_mtime_ns for path in (final, *final.iterdir())} == before


def test_a_volume_that_was_never_copied_is_not_published(nas: Repository) -> None:
    folder = made(nas)
    (folder / "datadisk.b.qcow2.attempt-b1").unlink()
    with pytest.raises(NasIo, match=r"Publishing i-2-1-VM/.*No such file or directory: .*datadisk\.b\.qcow2"):
        do_publish(nas)
    assert not (root_of(nas) / EXTERNAL_ID).exists()


def test_what_is_in_the_place_already_is_not_replaced(nas: Repository) -> None:
    made(nas)
    final = root_of(nas) / EXTERNAL_ID
    final.mkdir()
    (final / "theirs").write_bytes(b"theirs")
    with pytest.raises(NasIo, match="exists already"):
        do_publish(nas)
    assert content(final) == {"theirs": b"theirs"}


def test_the_size_is_what_the_files_occupy(nas: Repository) -> None:
    folder = made(nas)
    before = publish.size_on_disk(folder)
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (folder / "dense").write_bytes(bytes([1]) * 65536)
    assert 65536 <= publish.size_on_disk(folder) - before < 1 << 20


# --- discarding -----------------------------------------------------------------------------------------------


def test_discard_touches_no_sibling(nas: Repository) -> None:
    siblings = [f"{VM}/{STAMP}0", f"{VM}/2026.01.31.22.00.0", f"{VM}x/{STAMP}", f"i/{STAMP}"]
    for sibling in siblings:
        made(nas, external_id=sibling)
        do_publish(nas, external_id=sibling)
    made(nas, external_id=f"{VM}/2026.03.01.00.00.00")  # another that is being made
    before = content(root_of(nas))
    made(nas)
    publish.discard(nas, root=root_of(nas), external_id=EXTERNAL_ID)
    publish.discard(nas, root=root_of(nas), external_id=EXTERNAL_ID)
    assert content(root_of(nas)) == before


def test_the_vms_directory_goes_with_its_last_backup(nas: Repository) -> None:
    made(nas)
    do_publish(nas)
    publish.discard(nas, root=root_of(nas), external_id=EXTERNAL_ID)
    assert [path.name for path in root_of(nas).iterdir()] == [layout.MARKER]


def test_discarding_what_never_was_is_no_error(nas: Repository) -> None:
    publish.discard(nas, root=root_of(nas), external_id=EXTERNAL_ID)
    assert [path.name for path in root_of(nas).iterdir()] == [layout.MARKER]


def test_a_link_in_the_directory_is_removed_and_not_followed(nas: Repository, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"precious")
    (made(nas) / "link").symlink_to(precious)
    publish.discard(nas, root=root_of(nas), external_id=EXTERNAL_ID)
    assert content(precious) == {"file": b"precious"}


# --- hostile names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        "../../escape",
        "/etc",
        "a/../../b",
        ".partial-x",
        layout.MARKER,
        "-rf",
        "~root",
        "a\nb",
        "x" * 300,
        "ä",
    ],
)
def test_whatever_a_vm_is_called_its_backups_are_inside_the_repository(
    nas: Repository, tmp_path: Path, name: str
) -> None:
    external_id = f"{layout.safe_component(name)}/{STAMP}"
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(root_of(nas))]
    folder = made(nas, external_id=external_id)
    assert folder.resolve().parents[1] == root_of(nas)
    final = do_publish(nas, external_id=external_id)
    assert final.resolve().parents[1] == root_of(nas)
    assert content(final) == PUBLISHED
    publish.discard(nas, root=root_of(nas), external_id=external_id)
    assert [path.name for path in root_of(nas).iterdir()] == [layout.MARKER]
    assert [path for path in tmp_path.rglob("*") if not path.is_relative_to(root_of(nas))] == outside


# --- a NAS that is full, or refuses ---------------------------------------------------------------------------


@pytest.fixture
def small_nas(tmp_path: Path) -> Iterator[Repository]:
    """A file system of 1 MiB and 16 inodes of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    path = tmp_path / "small"
    path.mkdir()
    options = "size=1m,nr_inodes=16"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], check=False).returncode != 0:
        pytest.skip("mounting is not permitted here, although this is root")
    small = Repository(name="nas_small", type=RepositoryType.LOCAL, path=str(path))
    register(small)
    yield small
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(nas: Repository) -> Path:
    ballast = root_of(nas) / "ballast"
    ballast.write_bytes(bytes(free_bytes(root_of(nas))))
    assert free_bytes(root_of(nas)) == 0
    return ballast


def test_free_space_is_what_can_still_be_written(small_nas: Repository) -> None:
    assert 900_000 < free_bytes(root_of(small_nas)) < 1 << 20


def test_a_full_nas_is_told_and_nothing_is_published_until_there_is_room(small_nas: Repository) -> None:
    (made(small_nas) / "root.a.qcow2.attempt-a1").unlink()  # else removing it makes just enough room
    ballast = fill(small_nas)
    with pytest.raises(RepositoryFull, match="Repository nas_small is full"):
        do_publish(small_nas)
    assert not (root_of(small_nas) / EXTERNAL_ID).exists()
    ballast.unlink()
    assert content(do_publish(small_nas)) == PUBLISHED


def test_a_nas_without_room_for_the_directory_is_full(small_nas: Repository) -> None:
    with pytest.raises(RepositoryFull):
        publish.prepare(small_nas, root=root_of(small_nas), external_id=EXTERNAL_ID, domain_xml="x" * (2 << 20))
    publish.discard(small_nas, root=root_of(small_nas), external_id=EXTERNAL_ID)
    for number in range(20):
        if not os.statvfs(small_nas.path).f_ffree:
            break
        (root_of(small_nas) / f"inode-{number}").touch()
    with pytest.raises(RepositoryFull):
        publish.prepare(small_nas, root=root_of(small_nas), external_id=EXTERNAL_ID, domain_xml="<domain/>")


def test_a_full_nas_can_still_be_cleaned_up(small_nas: Repository) -> None:
    made(small_nas)
    ballast = fill(small_nas)
    publish.discard(small_nas, root=root_of(small_nas), external_id=EXTERNAL_ID)
    assert sorted(path.name for path in root_of(small_nas).iterdir()) == [layout.MARKER, ballast.name]


def test_a_nas_that_went_read_only_is_told_as_that(small_nas: Repository) -> None:
    made(small_nas)
    subprocess.run(["mount", "-o", "remount,ro", small_nas.path], check=True)
    actions: list[Callable[[], object]] = [
        lambda: do_publish(small_nas),
        lambda: publish.discard(small_nas, root=root_of(small_nas), external_id=EXTERNAL_ID),
        lambda: publish.prepare(small_nas, root=root_of(small_nas), external_id=f"{VM}/new", domain_xml=""),
    ]
    for action in actions:
        with pytest.raises(NasIo, match="Read-only file system") as caught:
            action()
        assert caught.value.retryable
    assert json.loads((root_of(small_nas) / layout.MARKER).read_text())["repository"] == "nas_small"
