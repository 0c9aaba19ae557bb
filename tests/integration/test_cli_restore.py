"""``nasbackup restore`` to a VM, in place and as a disk: what it prints, what it asks, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nasbackup.catalog import Database
from nasbackup.steps import Site

from tests.integration.restoring import assert_no_trace, contents, identical, vm
from tests.integration.story import Story
from tests.integration.test_cli import USAGE, answer, as_a_process, nasbackup, refused


def test_in_place_needs_a_word_and_says_what_is_where(story: Story, site: Site, database: Database) -> None:
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    first = story.backup()
    story.machine.guest_io("vda", "write -P 0x12 0 2M")
    second = story.backup()
    in_place = ("restore", second.external_id, "--target", "in-place")
    assert "is running: shut it down first (`virsh shutdown`" in refused(database, *in_place, "--dry-run")
    story.machine.destroy()
    before = contents(story.machine)

    plan = answer(database, *in_place, "--dry-run")
    assert (plan["external_id"], plan["target"], plan["vm"]) == (second.external_id, "in_place", story.machine.name)
    assert [volume["file"] for volume in plan["volumes"]] == [str(path) for path in story.machine.disks.values()]
    assert all(".before-" in volume["kept_as"] for volume in plan["volumes"])
    assert plan["space"][0]["has"] > plan["space"][0]["needs"] > 0
    shown = nasbackup(database, *in_place, "--dry-run").stdout
    assert "what is there now is kept as" in shown
    assert "Nothing was changed" in shown

    done = nasbackup(database, *in_place, expect=USAGE)
    assert "add --yes, or look first with --dry-run" in done.stderr
    assert contents(story.machine) == before
    assert_no_trace(site, story.machine.directory)

    result = answer(database, *in_place, "--yes")
    assert [identical(Path(v["file"]), story.frozen[second.external_id][v["name"]]) for v in result["volumes"]] == [
        True,
        True,
    ]
    assert len(result["kept"]) == 2
    asked = ("--vm", story.machine.name, "--before", second.created_at.isoformat(), "--target", "in-place", "--yes")
    done = nasbackup(database, "restore", *asked, "--remove-old", "--start")
    assert f"The newest backup is {first.external_id}." in done.stderr
    assert "It was started." in done.stdout
    assert story.machine.running
    assert_no_trace(site, story.machine.directory)


def test_a_new_vm_and_a_new_disk(story: Story, site: Site, database: Database) -> None:
    backup = story.backup()
    to, name = story.machine.directory / "new", f"{story.machine.name} [bold]"
    asked = ("restore", backup.external_id, "--target", "new-vm", "--to", str(to))
    assert "already; it was not touched. Choose another name." in refused(database, *asked)
    try:
        result = answer(database, *asked, "--new-name", name, "--start")
        assert (result["vm"], result["started"]) == (name, True)
        assert vm(story.machine, name).running
    finally:
        vm(story.machine, name).remove()
    done = nasbackup(
        database,
        "restore",
        backup.external_id,
        "--target",
        "volume",
        "--volume",
        "vdb",
        "--to",
        str(to),
        "--format",
        "raw",
    )
    assert "vdb-" in done.stdout
    assert "disk vdc" in done.stdout
    assert "vdc" in story.machine.disks
    assert_no_trace(site, to)


def test_images_have_a_dry_run_too(story: Story, database: Database, tmp_path: Path) -> None:
    backup = story.backup()
    to = tmp_path / "images"
    plan = answer(database, "restore", backup.external_id, "--to", str(to), "--dry-run")
    assert [volume["file"] for volume in plan["volumes"]] == [str(to / "vda.qcow2"), str(to / "vdb.qcow2")]
    assert (
        "Nothing was written" in nasbackup(database, "restore", backup.external_id, "--to", str(to), "--dry-run").stdout
    )
    assert not to.exists()
    on_nas = ("restore", "--vm", story.machine.name, "--repository", story.site.repository.path)
    assert "The newest backup is" in nasbackup(None, *on_nas, "--to", str(to)).stderr
    assert identical(to / "vda.qcow2", story.frozen[backup.external_id]["vda"])
    sentence = refused(None, *on_nas[:1], backup.external_id, *on_nas[3:], "--target", "in-place", "--yes")
    assert "without a catalog there are only images" in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("x/2026.01.31.22.00.05",),
        ("x/2026.01.31.22.00.05", "--vm", "x", "--to", "/x"),
        ("x/2026.01.31.22.00.05", "--before", "2026-01-31", "--to", "/x"),
        ("x/2026.01.31.22.00.05", "--target", "new_vm", "--to", "/x"),
    ],
)
def test_wrong_usage(database: Database, arguments: tuple[str, ...]) -> None:
    nasbackup(database, "restore", *arguments, expect=USAGE)


def test_what_cannot_be_found(database: Database, tmp_path: Path) -> None:
    to = ("--to", str(tmp_path / "new"))
    assert "VM 'web' has no backup that can be restored at all" in refused(database, "restore", "--vm", "web", *to)
    asked = ("restore", "--vm", "web", "--before", "2026-01-31 22:00", *to)
    assert "from before 2026-01-31 22:00:00 UTC" in refused(database, *asked)
    assert "it is no time like" in refused(database, "restore", "--vm", "web", "--before", "yesterday", *to)
    for target in ("new-vm", "volume", "in-place"):
        assert "There is no backup" in refused(
            database,
            "restore",
            "x/2026.01.31.22.00.05",
            "--target",
            target,
            "--volume",
            "root",
            *(to if target != "in-place" else ()),
            "--yes",
        )


def test_a_killed_command_is_followed_by_one_that_works(story: Story, site: Site, database: Database) -> None:
    """Killed while it writes; its lease is alive, and says whose it is; when it has expired, the next one goes on."""
    story.machine.guest_io("vda", "write -P 0x11 0 16M")
    backup = story.backup()
    story.machine.destroy()
    before = contents(story.machine)
    environment = {"NASBACKUP_CATALOG": str(database.parameters["dsn"])}
    killer = "import os, signal, sys, nasbackup.restore.files as files; from nasbackup.cli.main import main\n"
    killer += "files.take_places = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    killer += "main(['restore', sys.argv[1], '--target', 'in-place', '--yes'])"
    dead = subprocess.run(
        [sys.executable, "-c", killer, backup.external_id], env={**os.environ, **environment}, check=False
    )
    assert dead.returncode == -9
    assert contents(story.machine) == before
    in_place = ("restore", backup.external_id, "--target", "in-place", "--yes")
    assert "is in use by nasbackup restore by" in refused(database, *in_place)
    with database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 second'")
    done = as_a_process(*in_place, **environment)
    assert (done.exit_code, "kept:" in done.stdout) == (0, True), done.stderr
    assert "the VM has its old volumes again" in done.stderr
    for path in story.machine.disks.values():
        name = next(volume.name for volume in backup.volumes if volume.source == str(path))
        assert identical(path, story.frozen[backup.external_id][name])
    assert_no_trace(site, story.machine.directory)
