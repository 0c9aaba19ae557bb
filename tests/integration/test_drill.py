"""Restore drills with a real guest: it boots from the backup, apart from everything, and nothing of it stays."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from nasbackup.catalog import backups, drills
from nasbackup.errors import DrillBusy, PickFailed
from nasbackup.hypervisor import connect
from nasbackup.model import BackupType
from nasbackup.pick import Pick, pick
from nasbackup.restore.image import locate
from nasbackup.steps import Site
from nasbackup.steps.drill import DrillRequest, drill, drill_name, sweep

from lab import vm as lab
from tests.integration.story import Story
from tests.integration.test_cli import answer, nasbackup, refused
from tests.integration.test_mount import digests, eventually


@pytest.fixture
def guest(libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path) -> Iterator[Story]:
    """A running Linux guest with one disk."""
    volumes = [lab.Volume(size=32 << 20, filesystem=True)]
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=volumes, operating_system=True) as machine:
        yield Story(site=site, machine=machine, work=tmp_path)
        machine.close()
    shutil.rmtree(tmp_path / "nas", ignore_errors=True)


def carry_out(story: Story, backup: str, **request: Any) -> drills.DrillRecord:
    return drill(
        story.site.database,
        host=story.site.host,
        request=DrillRequest(backup=backup, **{"timeout": 90.0, **request}),
        reader="a test",
    )


def drill_vms(connection: Any) -> list[str]:
    return [domain.name() for domain in connection.listAllDomains() if domain.name().startswith("drill-")]


def leftovers(story: Story) -> list[str]:
    host = story.site.host
    return [str(path) for place in (host.scratch_dir, host.socket_dir) for path in Path(place).glob("drill-*")]


def servers() -> list[Path]:
    return [
        process
        for process in Path("/proc").glob("[0-9]*/cmdline")
        if b"/drill-" in _read(process) and _read(process).startswith(b"qemu-nbd")
    ]


def _read(process: Path) -> bytes:
    try:
        return process.read_bytes()
    except OSError:
        return b""


def test_a_guest_answers_and_its_source_notices_nothing(guest: Story, libvirt_connection: Any) -> None:
    database, root = guest.site.database, Path(guest.site.repository.path)
    guest.backup()
    child = guest.backup()
    before, uuid, checkpoint = digests(root), guest.machine.uuid, guest.active_checkpoint()

    by_agent = answer(database, "drill", child.external_id, "--timeout", "90s")
    assert (by_agent["result"], by_agent["how"], by_agent["vm"]) == ("ok", "agent", guest.machine.name)
    assert by_agent["rto_seconds"] > 0
    by_console = carry_out(guest, child.external_id, pattern="READY [0-9]", keep=True)
    assert (by_console.ok, by_console.how, by_console.detail) == (True, "console: READY [0-9]", "")

    # Kept for a look: it is shut away.
    (name,) = drill_vms(libvirt_connection)
    assert name == f"drill-{guest.machine.name}-{child.backup_id}"
    kept = libvirt_connection.lookupByName(name)
    assert kept.UUIDString() != uuid
    devices = ElementTree.fromstring(kept.XMLDesc()).find("devices")
    assert devices is not None
    assert devices.find("interface") is None
    with connect(guest.site.host) as hypervisor:
        assert sweep(hypervisor) == []
        with pytest.raises(DrillBusy, match="virsh destroy"):
            carry_out(guest, child.external_id)
        kept.destroy()
        assert len(sweep(hypervisor)) == 1
    assert (leftovers(guest), drill_vms(libvirt_connection)) == ([], [])
    eventually(lambda: servers() == [])

    # One that does not answer: what its console showed last is told.
    assert by_console.rto_seconds is not None
    silent = []
    for patience in (int(2 * by_console.rto_seconds) + 3, int(4 * by_console.rto_seconds) + 30):
        limited = ("--pattern", "never said", "--timeout", f"{patience}s", "--json")
        ended = nasbackup(database, "drill", child.external_id, *limited, expect=1)
        found = json.loads(ended.stdout)
        silent.append(("console: never said", "failed"))
        assert (found["result"], found["rto_seconds"]) == ("failed", None)
        assert "the console did not show 'never said' within" in found["detail"]
        assert f"The drill of backup {child.external_id} failed" in ended.stderr
        if "READY" in found["detail"]:
            break  # else this boot took far longer than the last one, and has to be waited for longer
    assert "The console's last words: READY" in found["detail"]

    # Neither the chain nor the VM were touched: the next backup is an incremental.
    assert digests(root) == before
    assert guest.active_checkpoint() == checkpoint
    assert guest.machine.running
    guest.machine.console().sync()
    assert guest.backup().type is BackupType.INCREMENTAL

    listed = answer(database, "drills", "--vm", guest.machine.name)
    assert [(entry["how"], entry["result"]) for entry in listed] == [
        *silent,
        ("console: READY [0-9]", "ok"),
        ("agent", "ok"),
    ]
    with database.transaction() as cursor:
        assert {one.external_id: one.drilled_at is not None for one in drills.candidates(cursor)}[child.external_id]
    (deleted,) = answer(database, "delete", child.external_id)
    assert f"VM {name}, which a drill left running" in deleted["kept_by"]
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM reading")
    nasbackup(database, "delete", *[backup["external_id"] for backup in answer(database, "list", "--all")])
    assert answer(database, "list", "--all") == []
    assert answer(database, "drills") == listed, "history outlives the backups"
    assert "READY" in nasbackup(database, "drills").stdout


def test_a_killed_one_leaves_no_vm_and_the_next_one_takes_its_files(story: Story, libvirt_connection: Any) -> None:
    backup, database = story.backup(), story.site.database
    process = subprocess.Popen(
        ["nasbackup", "drill", backup.external_id, "--pattern", "never said"],
        env={**os.environ, "NASBACKUP_CATALOG": str(database.parameters["dsn"])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        eventually(lambda: drill_vms(libvirt_connection) != [])
        with pytest.raises(DrillBusy):
            carry_out(story, backup.external_id)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    eventually(lambda: drill_vms(libvirt_connection) == [])
    eventually(lambda: servers() == [])
    assert leftovers(story) != [], "files, which the next drill removes"
    assert answer(database, "drills") == [], "it found nothing"

    # What is broken does not boot; that is what drills are for.
    layer = Path(story.site.repository.path) / backup.external_id / backup.volumes[0].file
    layer.rename(layer.with_suffix(".away"))
    record = carry_out(story, backup.external_id)
    assert not record.ok
    assert "the file is missing" in record.detail
    layer.with_suffix(".away").rename(layer)
    assert leftovers(story) == []
    assert drill_vms(libvirt_connection) == []


def test_what_cannot_be_drilled_is_said_in_one_sentence(story: Story) -> None:
    database, backup = story.site.database, story.backup()
    assert "There is no backup 'i-9/x'" in refused(database, "drill", "i-9/x")
    assert "There is no backup to drill: no VM" in _last(database, "--pick", "random", "--vm", "nobody-*")
    assert "it is no regular expression" in refused(database, "drill", backup.external_id, "--pattern", "(")
    nasbackup(database, "drill", expect=2)
    nasbackup(database, "drill", backup.external_id, "--pick", "oldest", expect=2)
    assert answer(database, "drills") == []
    # A machine without an operating system: no agent, so a login is waited for, and it says nothing.
    ended = nasbackup(database, "drill", "--pick", "oldest", "--timeout", "2s", "--json", expect=1)
    assert "did not show '(?m)login: *$' within 2 s" in json.loads(ended.stdout)["detail"]
    assert leftovers(story) == []
    nasbackup(database, "delete", backup.external_id)
    assert "There is no backup to drill" in _last(database, "--pick", "never-drilled")


def _last(database: Any, *arguments: str) -> str:
    return nasbackup(database, "drill", *arguments, expect=1).stderr.splitlines()[-1]


def test_a_name_of_any_length_is_a_name_for_a_vm(story: Story) -> None:
    backup = story.backup()
    located = locate(story.site.database, external_id=backup.external_id)
    for name in ("ä" * 300, "x" * 200):
        with story.site.database.transaction() as cursor:
            cursor.execute("UPDATE vm SET name = %s", (name,))
            changed = backups.get(cursor, backup_id=backup.backup_id)
        shown = drill_name(type(located)(backup=changed, lineage=[changed], root=located.root))
        assert shown.startswith(f"drill-{name[:40]}")
        assert shown.endswith(f"-{backup.backup_id}")
        assert len(shown.encode()) <= 200


# --- which backup -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class One:
    external_id: str
    vm: str
    drilled_at: datetime | None = None
    vm_drilled_at: datetime | None = None


LATELY, LONG_AGO = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC) - timedelta(days=90)


@pytest.mark.parametrize(
    ("found", "how", "vms", "expected"),
    [
        ([One(external_id="a/1", vm="a"), One(external_id="a/2", vm="a")], Pick.OLDEST, (), "a/1"),
        ([One(external_id="a/1", vm="a"), One(external_id="b/1", vm="b")], Pick.OLDEST, ("b*",), "b/1"),
        ([One(external_id="a/1", vm="a"), One(external_id="a/2", vm="a")], Pick.NEVER_DRILLED, (), "a/2"),
        (
            [One(external_id="a/1", vm="a", vm_drilled_at=LATELY), One(external_id="b/1", vm="b")],
            Pick.NEVER_DRILLED,
            (),
            "b/1",
        ),
        (
            [
                One(external_id="a/1", vm="a", vm_drilled_at=LONG_AGO),
                One(external_id="b/1", vm="b", vm_drilled_at=LATELY),
                One(external_id="a/2", vm="a", vm_drilled_at=LONG_AGO, drilled_at=LONG_AGO),
            ],
            Pick.NEVER_DRILLED,
            (),
            "a/1",
        ),
        (
            [
                One(external_id="a/1", vm="a", vm_drilled_at=LATELY, drilled_at=LATELY),
                One(external_id="b/1", vm="b", vm_drilled_at=LATELY, drilled_at=LONG_AGO),
            ],
            Pick.NEVER_DRILLED,
            (),
            "b/1",
        ),
    ],
)
def test_the_backup_that_is_picked(found: Sequence[One], how: Pick, vms: tuple[str, ...], expected: str) -> None:
    assert pick(found, how=how, vms=vms, chance=random.Random(1)) == expected


def test_chance_reaches_every_backup_and_nothing_is_no_pick() -> None:
    found = [One(external_id=f"a/{number}", vm="a") for number in range(5)]
    picked = {pick(found, how=Pick.RANDOM, chance=random.Random(seed)) for seed in range(60)}
    assert picked == {one.external_id for one in found}
    for how in Pick:
        with pytest.raises(PickFailed, match="no VM has a restorable backup"):
            pick([], how=how, chance=random.Random(1))
