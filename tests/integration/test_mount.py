"""Instant access: a backup is served where it lies, nothing is copied, and nobody deletes it meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nasbackup.catalog import backups, readings
from nasbackup.model import BackupStatus
from nasbackup.reconcile import observe, plan
from nasbackup.reconcile.plan import Kind
from nasbackup.steps.delete import finish

from tests.integration.story import Story, tool
from tests.integration.test_cli import answer, nasbackup, refused


def digests(root: Path) -> dict[str, tuple[str, int, int]]:
    """Content, mode and owner of every file."""
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode,
            path.stat().st_uid,
        )
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def eventually(true: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def mounts_below(directory: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {directory}" in line]


@contextmanager
def running(story: Story, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``nasbackup mount`` as a process, and what it said when it was ready."""
    dsn = str(story.site.database.parameters["dsn"])
    process = subprocess.Popen(
        ["nasbackup", "mount", *arguments, "--json"],
        env={**os.environ, "NASBACKUP_CATALOG": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            text += line
        yield process, json.loads(text)
    finally:
        process.kill()
        process.communicate()


def ends(process: subprocess.Popen[str], number: int) -> int:
    process.send_signal(number)
    return process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def _temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the processes that a test starts, and of nobody else's. (Short, as the path of a socket has to be.)"""
    with tempfile.TemporaryDirectory(prefix="mount-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield


def sockets() -> set[Path]:
    return set(Path(os.environ["TMPDIR"]).glob("nasbackup-*/nbd"))


def test_a_backup_is_served_over_nbd_and_as_files_and_is_not_deleted_meanwhile(story: Story, tmp_path: Path) -> None:
    database, root = story.site.database, Path(story.site.repository.path)
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    story.backup()
    story.machine.guest_io("vda", "write -P 0x12 1M 2M")
    child = story.backup()
    before, files = digests(root), tmp_path / "files"
    frozen = story.frozen[child.external_id]

    with running(story, child.external_id, "--files", str(files)) as (process, said):
        assert said["external_id"] == child.external_id
        assert {volume["name"] for volume in said["volumes"]} == set(frozen)
        for volume in said["volumes"]:
            same = ("qemu-img", "compare", "-f", "raw", "-F", "raw", str(frozen[volume["name"]]))
            tool(*same, volume["nbd"])
            tool(*same, volume["file"])
            assert Path(volume["file"]).parent == files
            assert Path(volume["file"]).stat().st_mode & 0o777 == 0o400
        refusal = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 4k", said["volumes"][0]["nbd"]], capture_output=True, check=False
        )
        assert refusal.returncode != 0, "it is read-only"

        # Its VM is backed up meanwhile, and that backup can be deleted. The one that is read stays until it is given
        # free, and with it all that it is built on.
        grandchild = story.backup()
        assert grandchild.parent == child.external_id
        nasbackup(database, "delete", grandchild.external_id)
        (deleted,) = answer(database, "delete", child.external_id)
        assert deleted["kept_by"][0].startswith("nasbackup mount by ")
        assert story.load(child.backup_id).status is BackupStatus.DELETE_PENDING
        assert Kind.FINISH_DELETE not in {action.kind for action in plan(observe(story.site)).actions}
        assert finish(story.site, vm_uuid=story.machine.uuid, vm=story.machine.name, holder="test").removed == ()
        for volume in said["volumes"]:
            tool("qemu-img", "compare", "-f", "raw", "-F", "raw", str(frozen[volume["name"]]), volume["nbd"])
        assert ends(process, signal.SIGINT) == 0
    assert not list(files.iterdir())
    assert mounts_below(files) == []
    assert digests(root) == before
    assert "cannot be restored" in refused(database, "mount", child.external_id), "delete-pending"
    assert Kind.FINISH_DELETE in {action.kind for action in plan(observe(story.site)).actions}
    finish(story.site, vm_uuid=story.machine.uuid, vm=story.machine.name, holder="test")
    assert not (root / child.external_id).exists()


def test_it_ends_by_itself_and_leaves_nothing_behind_also_when_it_is_killed(story: Story, tmp_path: Path) -> None:
    backup, files = story.backup(), tmp_path / "größe"
    arguments = (backup.external_id, "--volume", backup.volumes[1].name, "--files", str(files))
    with running(story, *arguments, "--for", "1s") as (process, said):
        assert [volume["name"] for volume in said["volumes"]] == [backup.volumes[1].name]
        assert process.wait(20) == 0
    assert sockets() == set()
    assert mounts_below(files) == []

    with running(story, *arguments) as (process, said):
        assert len(sockets()) == 1, "of one volume of the two"
        daemon = int((Path(said["volumes"][0]["nbd"].partition("socket=")[2]).parent / "pid").read_text())
        assert ends(process, signal.SIGKILL) == -signal.SIGKILL
        eventually(lambda: not Path(f"/proc/{daemon}").exists())
        assert mounts_below(files) == [], "what serves the files unmounts them when its parent is killed"
    with running(story, *arguments) as (process, said):  # over what the killed one left
        daemon = int((Path(said["volumes"][0]["nbd"].partition("socket=")[2]).parent / "pid").read_text())
        os.kill(daemon, signal.SIGKILL)
        assert process.wait(20) == 1
        assert process.stderr
        assert "qemu-storage-daemon failed" in process.stderr.read()
    assert mounts_below(files) == []
    assert not list(files.iterdir())
    assert sockets() == set()

    with story.site.database.transaction() as cursor:
        cursor.execute("SELECT count(*) AS count FROM reading")
        row = cursor.fetchone()
    assert row is not None
    assert row["count"] == 1, "the killed one's, which expires"


def test_over_tcp_on_the_loopback_address_only(story: Story) -> None:
    backup, port = story.backup(), free_port()
    with running(story, backup.external_id, "--tcp", str(port)) as (process, said):
        for volume in said["volumes"]:
            assert volume["nbd"] == f"nbd://127.0.0.1:{port}/{volume['name']}"
            frozen = story.frozen[backup.external_id][volume["name"]]
            tool("qemu-img", "compare", "-f", "raw", "-F", "raw", str(frozen), volume["nbd"])
        listening = [
            line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()
        ]
        assert [words[1] for words in listening if words[1].endswith(f":{port:04X}") and words[3] == "0A"] == [
            f"0100007F:{port:04X}"
        ]
        assert ends(process, signal.SIGTERM) == 0
    with running(story, backup.external_id, "--repository", story.site.repository.path) as (process, said):
        assert len(said["volumes"]) == 2, "from the NAS alone too"
        assert ends(process, signal.SIGINT) == 0


def test_what_cannot_be_served_is_said_in_one_sentence(story: Story, tmp_path: Path) -> None:
    database, root = story.site.database, Path(story.site.repository.path)
    full = story.backup()
    child = story.backup()
    assert "There is no backup" in refused(database, "mount", "i-9/2026.01.01.00.00.00")
    assert "has no volume 'vdz'" in refused(database, "mount", full.external_id, "--volume", "vdz")
    (tmp_path / "there" / f"{full.volumes[0].name}.raw").mkdir(parents=True)
    assert "exists already" in refused(database, "mount", full.external_id, "--files", str(tmp_path / "there"))
    layer = root / full.external_id / full.volumes[0].file
    content = layer.read_bytes()
    layer.unlink()
    assert f"layer of {full.external_id} is broken" in refused(database, "mount", child.external_id)
    outside = tmp_path / "outside"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={outside}", str(layer), "24M")
    assert "it keeps its data in another file" in refused(database, "mount", child.external_id)
    layer.write_bytes(content)
    root.rename(tmp_path / "unmounted")
    assert "Is the NAS mounted?" in refused(database, "mount", child.external_id)
    nasbackup(database, "mount", child.external_id, "--for", "soon", expect=2)


def test_a_mark_that_expired_is_not_brought_back_to_life(story: Story) -> None:
    backup, database = story.backup(), story.site.database
    with database.transaction() as cursor:
        dead = readings.begin(cursor, backup_id=backup.backup_id, reader="a reader that died", seconds=-1)
    with database.transaction() as cursor:
        assert readings.find(cursor, backup_id=backup.backup_id, reader="a reader that died") is None
    nasbackup(database, "delete", backup.external_id)
    with database.transaction() as cursor:
        assert backups.find_or_none(cursor, external_id=backup.external_id) is None
        cursor.execute("SELECT 1 FROM reading WHERE reading_id = %s", (dead,))
        assert cursor.fetchall() == []
