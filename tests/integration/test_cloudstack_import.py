"""Backups that Apache CloudStack's NAS provider made: listed, verified and restored; hostile ones never reach QEMU."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from nasbackup import qcow2
from nasbackup.catalog import Database
from nasbackup.errors import ImageRefused
from nasbackup.model import Repository
from nasbackup.nas.shelf import read_shelf
from nasbackup.steps.rebuild import rebuild_catalog
from nasbackup.steps.ticket import Store

from tests.integration.story import tool
from tests.integration.test_cli import answer, nasbackup, refused
from tests.integration.test_without_catalog import NOWHERE

VM = "i-2-77-VM"
FIRST, SECOND, OTHER = "2026.01.01.22.00.00", "2026.01.02.22.00.00", "2026.01.03.22.00.00"
ROOT, DATA = "root.6b1f2c1e-aaaa.qcow2", "datadisk.7c1f2c1e-bbbb.qcow2"
UUID = "5b1f2c1e-0000-4000-8000-00000000cafe"
SECRET = b"only root may read this" * 30


def qemu_io(image: Path, *commands: str) -> None:
    tool("qemu-io", "-f", "qcow2", *(part for command in commands for part in ("-c", command)), str(image))


@pytest.fixture
def nas(tmp_path: Path) -> Path:
    """A full and an incremental as CloudStack writes them: push-mode images, the second one rebased on the first."""
    root = tmp_path / "cloudstack"
    for name in (FIRST, SECOND):
        (root / VM / name).mkdir(parents=True)
        (root / VM / name / "domain-config.xml").write_text(
            f"<domain type='kvm'><name>{VM}</name><uuid>{UUID}</uuid></domain>"
        )
        (root / VM / name / "dominfo.xml").write_text("Id: 1\n")
    for file, size in ((ROOT, "8M"), (DATA, "3M")):
        tool("qemu-img", "create", "-q", "-f", "qcow2", str(root / VM / FIRST / file), size)
        tool("qemu-img", "create", "-q", "-f", "qcow2", str(root / VM / SECOND / file), size)
        qemu_io(root / VM / FIRST / file, "write -P 0x11 0 2M")
        qemu_io(root / VM / SECOND / file, "write -P 0x22 1M 1M")
        rebase(root / VM / SECOND / file, onto=f"../{FIRST}/{file}")
    return root


def rebase(image: Path, *, onto: str, kind: str = "qcow2") -> None:
    tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", onto, "-F", kind, str(image))


def left_out(root: Path) -> tuple[list[str], str]:
    printed = nasbackup(NOWHERE, "list", "--repository", str(root), "--json")
    return [entry["external_id"] for entry in json.loads(printed.stdout)], printed.stderr


def test_a_chain_is_listed_verified_and_restored(nas: Path, tmp_path: Path) -> None:
    at = ("--repository", str(nas))
    full, child = answer(NOWHERE, "list", *at)
    assert [full["external_id"], child["external_id"]] == [f"{VM}/{FIRST}", f"{VM}/{SECOND}"]
    assert [(entry["type"], entry["reason"], entry["verified"]) for entry in (full, child)] == [
        ("FULL", "imported", False),
        ("INCREMENTAL", "imported", False),
    ]
    assert (child["parent"], child["chain_position"], child["chain_id"]) == (f"{VM}/{FIRST}", 1, full["chain_id"])
    assert "imported" in nasbackup(NOWHERE, "list", *at).stdout
    verified = answer(NOWHERE, "verify", f"{VM}/{SECOND}", *at)
    assert (verified["verified"], verified["readable"]) == (False, True), "there is nothing to compare with"
    assert [len(volume["layers"]) for volume in verified["volumes"]] == [2, 2]
    assert "no digests are recorded" in nasbackup(NOWHERE, "verify", f"{VM}/{SECOND}", *at).stdout

    restored = answer(NOWHERE, "restore", f"{VM}/{SECOND}", "--to", str(tmp_path / "to"), *at)
    assert [volume["name"] for volume in restored["volumes"]] == ["6b1f2c1e-aaaa", "7c1f2c1e-bbbb"]
    for volume, size in zip(restored["volumes"], (8 << 20, 3 << 20), strict=True):
        raw = tmp_path / f"{volume['name']}.raw"
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume["file"], str(raw))
        mib = 1 << 20
        assert raw.read_bytes() == b"\x11" * mib + b"\x22" * mib + b"\0" * (size - 2 * mib)


def test_a_volume_that_cloudstack_names_anew_is_still_the_same_volume(nas: Path, tmp_path: Path) -> None:
    (nas / VM / SECOND / ROOT).rename(nas / VM / SECOND / "root.another-name.qcow2")
    restored = answer(NOWHERE, "restore", f"{VM}/{SECOND}", "--to", str(tmp_path / "to"), "--repository", str(nas))
    assert {volume["name"]: volume["layers"] for volume in restored["volumes"]} == {
        "another-name": 2,
        "7c1f2c1e-bbbb": 2,
    }


@pytest.mark.parametrize(
    ("onto", "kind"),
    [
        ("{secret}", "raw"),
        ("{secret}", "qcow2"),
        ('json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}', "raw"),
        ("nbd://127.0.0.1:10809/x", "raw"),
        ("file:../" + FIRST + "/" + ROOT, "qcow2"),
        ("../" + FIRST + "/" + ROOT, "raw"),
        ("../../i-2-78-VM/" + FIRST + "/" + ROOT, "qcow2"),
        ("../" + FIRST + "/../" + FIRST + "/" + ROOT, "qcow2"),
        ("../" + SECOND + "/" + ROOT, "qcow2"),
        ("../" + OTHER + "/" + ROOT, "qcow2"),
        ("../" + FIRST + "/root.gone.qcow2", "qcow2"),
        (ROOT, "qcow2"),
    ],
)
def test_a_backing_file_anywhere_else_is_refused(nas: Path, tmp_path: Path, onto: str, kind: str) -> None:
    secret = tmp_path / "shadow"
    secret.write_bytes(SECRET)
    shutil.copytree(nas / VM, nas / "i-2-78-VM")
    rebase(nas / VM / SECOND / ROOT, onto=onto.format(secret=secret), kind=kind)
    left, why = left_out(nas)
    assert left == [f"{VM}/{FIRST}", f"i-2-78-VM/{FIRST}", f"i-2-78-VM/{SECOND}"]
    assert f"{VM}/{SECOND}: " in why
    assert "is not opened" in why
    assert len(why.splitlines()) == 1
    assert f"There is no backup '{VM}/{SECOND}'" in _last_line(
        nasbackup(
            NOWHERE, "restore", f"{VM}/{SECOND}", "--to", str(tmp_path / "to"), "--repository", str(nas), expect=1
        )
    )
    assert not (tmp_path / "to").exists()


def _last_line(ended: object) -> str:
    return str(ended.stderr.splitlines()[-1])  # type: ignore[attr-defined]


def test_a_file_that_leads_elsewhere_is_refused(nas: Path, tmp_path: Path) -> None:
    secret, image = tmp_path / "shadow", nas / VM / SECOND / DATA
    secret.write_bytes(SECRET)
    image.unlink()
    image.symlink_to(nas / VM / FIRST / DATA)
    assert left_out(nas)[0] == [f"{VM}/{FIRST}"]
    image.unlink()
    # With an external data file: what QEMU shows as the disk's content is another file.
    outside = tmp_path / "outside.raw"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={outside},data_file_raw=on", str(image), "1M")
    secret.rename(outside)
    left, why = left_out(nas)
    assert left == [f"{VM}/{FIRST}"]
    assert "it keeps its data in another file" in why
    image.write_bytes(SECRET)
    assert "its first bytes are not those of a qcow2 image" in left_out(nas)[1]
    image.write_bytes(b"QFI\xfb\0\0\0\3")
    assert left_out(nas)[0] == [f"{VM}/{FIRST}"]


def test_header_fields_that_lie_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M")
    whole = image.read_bytes()
    assert qcow2.read_header(image) == qcow2.Header(virtual_size=1 << 20, backing=None)
    lies = {
        "encrypted": (32, struct.pack(">I", 2)),
        "name behind the end": (8, struct.pack(">QI", 1 << 40, 10)),
        "name too long": (8, struct.pack(">QI", 512, 5000)),
        "unknown feature": (72, struct.pack(">Q", 1 << 40)),
        "version": (4, struct.pack(">I", 9)),
    }
    for lie, (offset, content) in lies.items():
        image.write_bytes(whole[:offset] + content + whole[offset + len(content) :])
        with pytest.raises(ImageRefused) as refusal:
            qcow2.read_header(image)
        assert refusal.value.file == image, lie
    (tmp_path / "directory").mkdir()
    with pytest.raises(ImageRefused):
        qcow2.read_header(tmp_path / "directory")


def test_a_damaged_layer_is_named(nas: Path, tmp_path: Path) -> None:
    image = nas / VM / FIRST / ROOT
    content = bytearray(image.read_bytes())
    content[0x20000:0x20008] = b"\xff" * 8  # within its refcounts and tables: qemu-img check tells
    content[0x30000:0x30008] = b"\x80" + b"\xff" * 7
    image.write_bytes(content)
    sentence = refused(NOWHERE, "restore", f"{VM}/{SECOND}", "--to", str(tmp_path / "to"), "--repository", str(nas))
    assert f"layer of {VM}/{FIRST} is broken" in sentence
    assert not (tmp_path / "to").exists()


def test_one_of_ours_without_its_manifest_is_none_of_cloudstacks(nas: Path) -> None:
    """Its manifest goes first when it is deleted: half a backup must not come back as an imported one."""
    for name in (FIRST, SECOND):
        (nas / VM / name / "domain-config.xml").unlink()
    assert left_out(nas)[0] == [f"{VM}/{FIRST}", f"{VM}/{SECOND}"], "of a stopped VM, with nothing of ours beside it"
    (nas / VM / "RESTORE.txt").write_text("ours")
    left, why = left_out(nas)
    assert left == []
    assert "there is no manifest" in why


def test_rebuild_catalog_leaves_them_out_and_says_so(nas: Path, database: Database, repository: Repository) -> None:
    shutil.copytree(nas / VM, Path(repository.path) / VM)
    rebuilt = rebuild_catalog(Store(database=database, repository=repository), holder="test")
    assert rebuilt.added == []
    assert [
        f"{VM}/{name}: CloudStack made it" in problem
        for name, problem in zip((FIRST, SECOND), rebuilt.problems, strict=True)
    ] == [True, True]
    assert len(read_shelf(repository, root=Path(repository.path)).backups) == 2
