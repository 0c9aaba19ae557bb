"""The command line as people and programs use it: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from nasbackup.catalog import Database, backups, vms
from nasbackup.cli.main import main
from nasbackup.cli.options import CATALOG_VARIABLES
from nasbackup.model import BackupStatus, Repository

from lab import history
from tests.integration.catalog_rows import VM, full, opened, plan
from tests.integration.story import Story, tool

MIB = 1 << 20
DONE, REFUSED, USAGE = 0, 1, 2


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: str
    stderr: str


def nasbackup(catalog: Database | str | None, *arguments: str, expect: int = DONE) -> Ended:
    """Run the command line in this process: starting Python costs more than most commands."""
    environment: dict[str, str | None] = dict.fromkeys(CATALOG_VARIABLES)
    if catalog is not None:
        environment["NASBACKUP_CATALOG"] = catalog if isinstance(catalog, str) else str(catalog.parameters["dsn"])
    result = CliRunner().invoke(main, list(arguments), prog_name="nasbackup", env=environment)
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    assert result.exit_code == expect, f"{arguments}: {result.stdout}{result.stderr}"
    return Ended(result.exit_code, result.stdout, result.stderr)


def as_a_process(*arguments: str, **environment: str) -> Ended:
    inherited = {key: value for key, value in os.environ.items() if key not in CATALOG_VARIABLES}
    done = subprocess.run(
        ["nasbackup", *arguments], env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def refused(catalog: Database | str | None, *arguments: str) -> str:
    """The sentence."""
    done = nasbackup(catalog, *arguments, expect=REFUSED)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1, "one sentence"
    return done.stderr


def answer(catalog: Database, *arguments: str) -> Any:
    done = nasbackup(catalog, *arguments, "--json")
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_from_list_to_restore(story: Story, tmp_path: Path) -> None:
    database = story.site.database
    root, data = story.machine.disks
    story.machine.guest_io(root, "write -P 0x11 0 2M")
    full = story.backup()
    story.machine.guest_io(root, "write -P 0x12 1M 2M")
    incremental = story.backup()

    # list
    listed = answer(database, "list")
    assert [backup["external_id"] for backup in listed] == [full.external_id, incremental.external_id]
    assert answer(database, "list", "--vm", story.machine.name) == listed
    assert answer(database, "list", "--vm", "nobody") == []
    assert answer(database, "list", "--all") == listed
    table = nasbackup(database, "list").stdout
    for expected in (full.external_id, incremental.external_id, "FULL", "INCREMENTAL", "BackedUp", "yes"):
        assert expected in table
    assert "There are no backups." in nasbackup(database, "list", "--vm", "nobody").stdout

    # show
    shown = answer(database, "show", incremental.external_id)
    assert shown == listed[1]
    assert (shown["type"], shown["status"], shown["reason"]) == ("INCREMENTAL", "BackedUp", "incremental")
    assert (shown["parent"], shown["chain_position"]) == (full.external_id, 1)
    assert (shown["vm"], shown["host"], shown["repository"]) == (story.machine.name, "kvm_test", "nas_test")
    assert (shown["chain_id"], shown["checkpoint"]) == (listed[0]["chain_id"], story.active_checkpoint())
    assert shown["verified"] is True
    assert shown["size"] > 0
    assert Path(shown["path"]) == Path(story.site.repository.path) / incremental.external_id
    assert shown["volumes"][0]["source"] == str(story.machine.disks[root])
    assert (shown["volumes"][0]["bytes_read"], shown["volumes"][1]["bytes_read"]) == (2 * MIB, 0)
    assert shown["volumes"][0]["virtual_size"] == 24 * MIB
    for volume in shown["volumes"]:
        assert Path(volume["file"]).parent == Path(shown["path"])
        assert Path(volume["file"]).is_file()
    text = nasbackup(database, "show", incremental.external_id).stdout
    for expected in (incremental.external_id, full.external_id, "incremental on", shown["volumes"][0]["name"]):
        assert expected in text

    # verify
    verified = answer(database, "verify", incremental.external_id)
    assert (verified["external_id"], verified["verified"]) == (incremental.external_id, True)
    assert [len(volume["layers"]) for volume in verified["volumes"]] == [2, 2]
    assert "2 layers read back" in nasbackup(database, "verify", incremental.external_id).stdout

    # restore
    to = tmp_path / "restored"
    restored = answer(database, "restore", incremental.external_id, "--to", str(to))
    assert [volume["layers"] for volume in restored["volumes"]] == [2, 2]
    frozen = story.frozen[incremental.external_id]
    for volume in restored["volumes"]:
        assert Path(volume["file"]).parent == to
        tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", volume["file"], str(frozen[volume["name"]]))
        assert "backing file" not in tool("qemu-img", "info", volume["file"])

    one = tmp_path / "one"
    raw = ("--format", "raw", "--volume", restored["volumes"][1]["name"])
    printed = nasbackup(database, "restore", full.external_id, "--to", str(one), *raw).stdout
    (image,) = one.iterdir()
    assert f"{data} -> {image} (from 1 layers)" in printed
    assert image.read_bytes() == story.frozen[full.external_id][restored["volumes"][1]["name"]].read_bytes()

    # what exists already is not touched
    before = {path: path.read_bytes() for path in to.iterdir()}
    sentence = refused(database, "restore", full.external_id, "--to", str(to))
    assert f"{restored['volumes'][0]['file']} exists already; nothing was written" in sentence
    assert {path: path.read_bytes() for path in to.iterdir()} == before
    (to / Path(restored["volumes"][0]["file"]).name).unlink()
    refused(database, "restore", full.external_id, "--to", str(to))
    assert len(list(to.iterdir())) == 1, "one target exists: not even the other image is written"

    # a volume that is not there
    sentence = refused(database, "restore", full.external_id, "--to", str(tmp_path / "none"), "--volume", "vdz")
    assert f"has no volume 'vdz'. Its volumes: {root}, {data}" in sentence
    assert not (tmp_path / "none").exists()


def test_a_generated_past_is_told_from_backups(database: Database, repository: Repository, tmp_path: Path) -> None:
    with database.transaction() as cursor:
        vms.register(cursor, uuid=VM, name="i-2-1-VM", host="kvm_test")
        opened(cursor, full(), repository=repository.name)
    now = datetime.now(UTC)
    history.generate(
        database,
        vm="i-2-9-VM",
        vm_uuid=str(uuid.uuid4()),
        host="kvm_test",
        repository=repository.name,
        policy="standard",
        volumes={"vda": (tmp_path / "vda.qcow2", MIB)},
        newest=timedelta(hours=1),
        now=now,
    )
    listed = {backup["external_id"]: backup["generated"] for backup in answer(database, "list")}
    assert len(listed) == history.DAYS + 1
    assert listed == {external_id: external_id.startswith("i-2-9-VM/") for external_id in listed}
    lines = nasbackup(database, "list").stdout.splitlines()
    said = {line.split()[0]: "generated, not on any NAS" in line for line in lines[1:]}
    assert said == listed
    newest = max(external_id for external_id, generated in listed.items() if generated)
    nasbackup(database, "pin", newest)
    assert "generated, not on any NAS; pinned" in nasbackup(database, "list", "--vm", "i-2-9-VM").stdout
    assert answer(database, "show", newest)["generated"] is True


def flip_a_byte(file: Path) -> None:
    """In the middle of the layer's data, which is behind its metadata."""
    content = bytearray(file.read_bytes())
    position = content.rindex(b"\x11" * 512) + 100
    content[position] ^= 0xFF
    file.write_bytes(content)


def test_a_damaged_ancestor_is_named_and_nothing_is_written(story: Story, tmp_path: Path) -> None:
    database = story.site.database
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    full = story.backup()
    story.machine.guest_io("vda", "write -P 0x12 4M 1M")
    incremental = story.backup()
    root = full.volumes[0]
    flip_a_byte(Path(story.site.repository.path) / full.external_id / root.file)

    to = tmp_path / "restored"
    for command in (("verify",), ("restore", "--to", str(to))):
        for backup in (full, incremental):
            sentence = refused(database, *command, backup.external_id)
            assert f"Backup {backup.external_id} cannot be restored: layer of {full.external_id} is broken" in sentence
            assert f"{root.file}: its content is not what was copied" in sentence
    assert not to.exists()
    # The other volume's line is whole.
    nasbackup(database, "restore", incremental.external_id, "--to", str(to), "--volume", full.volumes[1].name)
    assert [path.name for path in to.iterdir()] == [f"{full.volumes[1].name}.qcow2"]


def test_a_missing_layer_and_a_missing_nas_are_told_apart(story: Story, tmp_path: Path) -> None:
    database = story.site.database
    full = story.backup()
    incremental = story.backup()
    layer = Path(story.site.repository.path) / full.external_id / full.volumes[0].file
    layer.rename(tmp_path / "taken away")
    sentence = refused(database, "verify", incremental.external_id)
    assert f"layer of {full.external_id} is broken" in sentence
    assert "the file is missing" in sentence
    (tmp_path / "taken away").rename(layer)
    Path(story.site.repository.path).rename(tmp_path / "unmounted")
    for command in (("verify",), ("restore", "--to", str(tmp_path / "to"))):
        assert "Is the NAS mounted?" in refused(database, *command, full.external_id)
    assert not (tmp_path / "to").exists()
    assert answer(database, "show", full.external_id)["status"] == "BackedUp", "the catalog answers without the NAS"


def test_a_backup_that_is_not_recorded_cannot_be_restored(story: Story, tmp_path: Path) -> None:
    database = story.site.database
    ticket, decided = story.decide()
    sentence = refused(database, "restore", decided.external_id, "--to", str(tmp_path / "to"))
    assert "cannot be restored: it is BackingUp" in sentence
    with database.transaction() as cursor:
        backups.fail(cursor, backup_id=ticket.backup_id, error="the NAS was away")
    assert "it is Failed" in refused(database, "verify", decided.external_id)
    (failed,) = answer(database, "list")
    assert (failed["status"], failed["error"], failed["size"], failed["verified"]) == (
        "Failed",
        "the NAS was away",
        None,
        False,
    )
    for status in (BackupStatus.DELETE_PENDING, BackupStatus.DELETING):
        with database.transaction() as cursor:
            cursor.execute("UPDATE backup SET status = %s", (status,))
        assert answer(database, "list") == []
        assert [backup["status"] for backup in answer(database, "list", "--all")] == [status]


# --- without any VM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("show",), ("verify",), ("restore", "--to", "/nowhere/at/all")])
def test_an_unknown_backup_is_refused(database: Database, command: tuple[str, ...]) -> None:
    for name in ("i-2-1234-VM/2026.01.31.22.00.05", "../../etc/passwd", "'; DROP TABLE backup; --", "[/]", ""):
        assert f"There is no backup {name!r}. `nasbackup list` shows" in refused(database, *command, name)
    assert not Path("/nowhere").exists()


def test_an_empty_catalog_is_no_error(database: Database) -> None:
    assert answer(database, "list") == []
    assert "There are no backups." in nasbackup(database, "list").stdout


def test_a_catalog_that_is_not_named_is_told(tmp_path: Path) -> None:
    for command in (("list",), ("show", "x"), ("catalog", "migrate"), ("register-repository", "n", "--path", "/x")):
        assert "set NASBACKUP_CATALOG to its libpq URI" in refused(None, *command)


def test_airflows_connection_names_the_catalog_too(database: Database) -> None:
    done = as_a_process("list", "--json", AIRFLOW_CONN_NAS_BACKUP_CATALOG=str(database.parameters["dsn"]))
    assert done == Ended(DONE, "[]\n", "")


def test_the_exit_codes_are_those_of_the_process(database: Database) -> None:
    dsn = str(database.parameters["dsn"])
    assert as_a_process("list", NASBACKUP_CATALOG=dsn).exit_code == DONE
    missing = as_a_process("show", "vm/none", NASBACKUP_CATALOG=dsn)
    assert (missing.exit_code, missing.stdout, missing.stderr.count("\n")) == (REFUSED, "", 1)
    assert as_a_process("show", NASBACKUP_CATALOG=dsn).exit_code == USAGE


def test_a_catalog_that_does_not_answer_is_told_in_one_sentence() -> None:
    sentence = refused("postgresql://nasbackup:geheim@127.0.0.1:1/nasbackup", "list")
    assert "The catalog does not answer" in sentence
    assert "geheim" not in sentence


def test_an_address_that_cannot_be_read_is_refused_without_the_password() -> None:
    """Airflow writes connections as JSON too."""
    done = as_a_process("list", AIRFLOW_CONN_NAS_BACKUP_CATALOG='{"conn_type":"postgres","password":"geheim"}')
    assert "geheim" not in done.stdout + done.stderr
    assert (done.exit_code, "Traceback" in done.stderr) == (REFUSED, False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("list", "--colour"),
        ("show",),
        ("restore", "x"),
        ("restore", "x", "--to", "/tmp", "--format", "vmdk"),
        ("restore", "x", "--to", "/etc/passwd"),
        ("register-repository", "n"),
        ("register-repository", "n", "--path", "/x", "--type", "floppy"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_two(database: Database, arguments: tuple[str, ...]) -> None:
    done = nasbackup(database, *arguments, expect=USAGE)
    assert "Usage: nasbackup" in done.stderr
    assert done.stdout == ""


def test_every_command_has_help() -> None:
    for command in (
        (),
        ("list",),
        ("show",),
        ("verify",),
        ("restore",),
        ("register-repository",),
        ("catalog", "migrate"),
    ):
        assert "Usage: nasbackup" in nasbackup(None, *command, "-h").stdout


def test_migrating_twice_is_harmless(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert "run `nasbackup catalog migrate` once" in refused(database, "list")
    assert answer(database, "catalog", "migrate")["applied"][0] == "0001_initial"
    assert answer(database, "catalog", "migrate") == {"applied": []}
    assert "nothing" in nasbackup(database, "catalog", "migrate").stdout


def test_a_repository_is_registered_once_and_recognised_after(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "nas"
    arguments = ("register-repository", "nas_new", "--path", str(path))
    assert "not an existing absolute directory" in refused(database, *arguments)
    path.mkdir()
    first = answer(database, *arguments)
    assert first == {"repository": "nas_new", "path": str(path), "uuid": first["uuid"]}
    assert answer(database, *arguments) == first
    other = tmp_path / "other"
    other.mkdir()
    sentence = refused(database, "register-repository", "nas_new", "--path", str(other))
    assert "the catalog knows a repository of this name with another marker" in sentence
    assert list(other.iterdir()) == []


@pytest.mark.parametrize("name", ["[bold]vm", "[/]", "vm [red]x[/red]", "ä 日本", "x" * 100])
def test_a_table_shows_names_as_they_are(database: Database, repository: Repository, name: str) -> None:
    external_id = f"{name.replace('/', '%2F')}/2026.01.31.22.00.05"
    with database.transaction() as cursor:
        insert_backup(cursor, vm=name, external_id=external_id, repository=repository)
    for command in (("list",), ("show", external_id)):
        assert external_id in nasbackup(database, *command).stdout


def insert_backup(cursor: Any, *, vm: str, external_id: str, repository: Repository) -> None:
    vms.register(cursor, uuid=VM, name=vm, host="kvm_one")
    decision = full(volumes=[plan(vm)])
    backup_id = opened(cursor, decision, repository=repository.name, external_id=external_id)
    backups.record(cursor, backup_id=backup_id, size=1)
