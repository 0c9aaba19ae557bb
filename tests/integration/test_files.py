"""Files out of a backup's file systems, hostile ones too. libguestfs really runs: a small VM for each of these."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nasbackup.cli import access_output
from nasbackup.errors import FileNotInBackup, FilesUnreadable, NoFileSystem, TargetExists
from nasbackup.model import Repository, RepositoryType
from nasbackup.nas.shelf import read_shelf
from nasbackup.restore.extract import printable, unpack
from nasbackup.restore.file_level import extract
from nasbackup.restore.filesystems import FileSystems, opened
from nasbackup.restore.image import Located
from nasbackup.restore.sums import compare

from lab import appliance
from tests.integration.story import tool
from tests.integration.test_cli import nasbackup, refused
from tests.integration.test_mount import digests, mounts_below
from tests.integration.test_without_catalog import NOWHERE

ID = "i-2-88-VM/2026.01.01.22.00.00"
PLAIN, PARTED = "plain", "parted"
NEWLINE = "a name\nof two lines"
NOT_UTF8 = b"not-utf8-\xff"
BIG = os.urandom(3 << 20)


@pytest.fixture(scope="module", autouse=True)
def libguestfs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in appliance.environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def nas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of two disks: an ext4 over the whole of one; ext4, xfs and swap in partitions of the other."""
    work = tmp_path_factory.mktemp("files")
    tree = work / "tree"
    (tree / "etc/deep/er").mkdir(parents=True)
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/deep/er/big").write_bytes(BIG)
    os.link(tree / "etc/deep/er/big", tree / "etc/hard-link")
    (tree / "etc" / NEWLINE).write_text("1")
    (tree / "etc" / "[bold]\x1b[31m").write_text("2")
    Path(os.fsdecode(os.fsencode(tree / "etc") + b"/" + NOT_UTF8)).write_text("3")
    listed = f"{hashlib.sha256(BIG).hexdigest()}  deep/er/big\n{'0' * 64} *hostname\n{'1' * 64}  gone\n"
    (tree / "etc/sums").write_text(listed)
    (tree / "etc/setuid").write_text("#!/bin/sh\n")
    (tree / "etc/setuid").chmod(0o6755)
    os.chown(tree / "etc/hostname", 1234, 1234)
    (tree / "etc/out").symlink_to("/etc")
    (tree / "etc/up").symlink_to("../../../../../../../../etc/shadow")
    os.mkfifo(tree / "etc/pipe")
    os.mknod(tree / "etc/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0))
    whole, parted = work / "whole.raw", work / "parted.raw"
    whole.touch()
    os.truncate(whole, 24 << 20)
    tool("mkfs.ext4", "-q", "-d", str(tree), str(whole))
    parted.touch()
    os.truncate(parted, 360 << 20)
    table = "label: gpt\n2048,16384\n20480,655360\n680000,16384\n"
    subprocess.run(["sfdisk", "-q", str(parted)], input=table, text=True, check=True, capture_output=True)
    small = work / "small"
    small.mkdir()
    (small / "on-partition").write_text("one")
    tool("mkfs.ext4", "-q", "-d", str(small), "-E", "offset=1048576", str(parted), "8M")
    prototype, xfs, swap = work / "prototype", work / "xfs.raw", work / "swap.raw"
    (work / "content").write_text("in xfs\n")
    prototype.write_text(f"/none\n0 0\nd--755 0 0\nsrv d--755 0 0\nfile ---644 0 0 {work}/content\n$\n$\n")
    for image, size in ((xfs, 320 << 20), (swap, 8 << 20)):
        image.touch()
        os.truncate(image, size)
    tool("mkfs.xfs", "-q", "-p", str(prototype), str(xfs))
    tool("mkswap", str(swap))
    for image, sector in ((xfs, 20480), (swap, 680000)):
        tool("dd", f"if={image}", f"of={parted}", "bs=512", f"seek={sector}", "conv=notrunc,sparse")
    root = work / "nas"
    (root / ID).mkdir(parents=True)
    for name, raw, image in (("root", whole, PLAIN), ("datadisk", parted, PARTED)):
        target = root / ID / f"{name}.{image}.qcow2"
        tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target))
    return root


@pytest.fixture(scope="module")
def located(nas: Path) -> Located:
    shelf = read_shelf(Repository(name="nas", type=RepositoryType.LOCAL, path=str(nas)), root=nas)
    backup = shelf.find(ID)
    return Located(backup=backup, lineage=shelf.lineage(backup), root=nas)


@pytest.fixture(scope="module")
def files(located: Located) -> Iterator[FileSystems]:
    """One start of the small VM for all tests that only look."""
    with opened(located) as found:
        yield found


def test_every_file_system_is_named_and_the_meant_one_is_found(files: FileSystems) -> None:
    assert {one.name: (one.type, one.has_files) for one in files.all()} == {
        PLAIN: ("ext4", True),
        f"{PARTED}:1": ("ext4", True),
        f"{PARTED}:2": ("xfs", True),
        f"{PARTED}:3": ("swap", False),
    }
    assert files.choose(volume=PARTED, partition=2).device == "/dev/sdb2"
    assert files.choose(name=f"{PARTED}:1").device == "/dev/sdb1"
    assert files.choose(volume=PLAIN).device == "/dev/sda"
    for meant in ({}, {"volume": PARTED}, {"volume": PARTED, "partition": 3}, {"partition": 9}, {"name": "/dev/sda"}):
        with pytest.raises(NoFileSystem, match=rf"{PARTED}:2 \(xfs\)"):
            files.choose(**meant)  # type: ignore[arg-type]


def test_a_directory_is_listed_whatever_is_in_it(files: FileSystems) -> None:
    files.mount(files.choose(volume=PLAIN))
    found = {entry.name: entry for entry in files.list("/etc")}
    assert set(found) == {
        *("hostname", "deep", "hard-link", NEWLINE, "[bold]\x1b[31m", os.fsdecode(NOT_UTF8), "setuid", "out", "up"),
        *("pipe", "disk", "sums"),
    }
    assert (found["hostname"].kind, found["hostname"].size, found["hostname"].uid) == ("file", 6, 1234)
    assert (found["deep"].kind, found["out"].kind, found["disk"].kind) == ("directory", "link", "other")
    assert (found["out"].target, found["setuid"].mode) == ("/etc", 0o6755)
    assert [entry.name for entry in files.list("etc/hostname")] == ["hostname"]
    assert [entry.kind for entry in files.list("/etc/out")] == ["link"], "not what it leads to"
    assert {entry.name for entry in files.list("/../../etc/../etc/deep")} == {"er"}
    for path in ("/none", "/etc/hostname/x", "/etc/" + os.fsdecode(NOT_UTF8)):
        with pytest.raises(FileNotInBackup):
            files.list(path)
    files.mount(files.choose(volume=PARTED, partition=2))
    assert [entry.name for entry in files.list("/srv")] == ["file"]


def test_nothing_leaves_the_directory_that_it_is_extracted_to(files: FileSystems, tmp_path: Path, nas: Path) -> None:
    chosen, before = files.choose(volume=PLAIN), digests(nas)
    files.mount(chosen)
    done = extract(files, chosen=chosen, path="/etc", to=tmp_path / "to")
    etc = tmp_path / "to" / "etc"
    assert done.target == etc
    assert (etc / "deep/er/big").read_bytes() == BIG
    assert (etc / "hard-link").read_bytes() == BIG
    assert (etc / NEWLINE).read_text() == "1"
    assert (etc / "[bold]\x1b[31m").read_text() == "2"
    assert Path(os.fsdecode(os.fsencode(etc) + b"/" + NOT_UTF8)).read_text() == "3"
    assert stat.S_IMODE((etc / "setuid").stat().st_mode) == 0o755, "without set-user-ID"
    assert (etc / "hostname").stat().st_uid == os.geteuid()
    assert (etc / "out").readlink() == Path("/etc")
    assert (etc / "up").is_symlink()
    assert not (etc / "pipe").exists()
    assert not (etc / "disk").exists()
    assert sorted(done.unpacked.skipped) == [
        "./disk: no file, directory or link",
        "./pipe: no file, directory or link",
    ]
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["etc"]

    one = extract(files, chosen=chosen, path="etc/deep/er/big", to=tmp_path / "to")
    assert (tmp_path / "to/big").read_bytes() == BIG
    assert (one.unpacked.files, one.unpacked.bytes) == (1, len(BIG))
    with pytest.raises(TargetExists):
        extract(files, chosen=chosen, path="/etc", to=tmp_path / "to")
    for path, why in (("/etc/out", "it is a link to '/etc'"), ("/etc/disk", "it is no file"), ("/x", "No such file")):
        with pytest.raises(FileNotInBackup, match=why):
            extract(files, chosen=chosen, path=path, to=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert digests(nas) == before


def test_files_are_compared_with_what_the_guest_wrote_of_them(files: FileSystems) -> None:
    good, bad = compare(files, path="/etc/sums")
    assert good == 1
    assert bad[0] == f"hostname: {hashlib.sha256(b'guest' + bytes([10])).hexdigest()}, not {'0' * 64}"
    assert bad[1].startswith("gone: none (")
    assert len(bad) == 2
    for path, why in (("/etc/hostname", "no list as sha256sum"), ("/.none", "in none of them"), ("/etc", "none of")):
        with pytest.raises(FileNotInBackup, match=why):
            compare(files, path=path)


def test_names_of_a_guest_are_printed_as_they_can_be(files: FileSystems, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = files.choose(volume=PLAIN)
    files.mount(chosen)
    entries = files.list("/etc")
    access_output.show_entries(ID, chosen=chosen, path="/etc", entries=entries, as_json=True)
    document = json.loads(capsys.readouterr().out)
    names = {entry["name"]: entry for entry in document["entries"]}
    assert {NEWLINE, "hostname", "not-utf8-\\xff", "[bold]\x1b[31m"} <= set(names)
    assert (names["setuid"]["mode"], names["out"]["target"]) == ("6755", "/etc")
    access_output.show_entries(ID, chosen=chosen, path="/etc", entries=entries, as_json=False)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for shown in ("a name\\nof two lines", "[bold]\\x1b[31m", "not-utf8-\\xff", "out -> /etc"):
        assert shown in printed
    assert len(printed.splitlines()) == len(entries) + 1
    access_output.show_file_systems(ID, found=files.all(), as_json=False)
    assert "has no files that can be read" in capsys.readouterr().out


def test_the_command_line_extracts(nas: Path, tmp_path: Path) -> None:
    at = ("--repository", str(nas))
    printed = nasbackup(
        NOWHERE, "files", ID, "--volume", PARTED, "--partition", "2", "--extract", "/srv", "--to", str(tmp_path), *at
    ).stdout
    assert f"{PARTED}:2:/srv -> {tmp_path}/srv (1 files, 7 bytes)" in printed
    assert (tmp_path / "srv/file").read_text() == "in xfs\n"
    # Without the small VM:
    assert "exists already" in refused(NOWHERE, "files", ID, "--extract", "/srv", "--to", str(tmp_path), *at)
    assert "has no volume 'x'" in refused(NOWHERE, "files", ID, "--volume", "x", "/", *at)
    assert "There is no backup" in refused(NOWHERE, "files", "i-9/2026.01.01.00.00.00", "/", *at)
    nasbackup(NOWHERE, "files", ID, "--extract", "/srv", *at, expect=2)
    assert mounts_below(tmp_path) == []


def test_what_libguestfs_cannot_start_is_said(located: Located, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBGUESTFS_HV", "/bin/false")
    with pytest.raises(FilesUnreadable, match="cannot be read"), opened(located):
        pass


# --- the stream itself, as no file system can make it ------------------------------------------------------------


def stream(*members: tuple[str, str, str]) -> io.BytesIO:
    """Name, type and link of each."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind.encode(), link, 0o4777
            content = b"evil" if kind == "0" else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed.seek(0)
    return packed


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", "0", "")],
        [("/{outside}/evil", "0", "")],
        [("a/../../evil", "0", "")],
        [("a", "2", "{outside}"), ("a/evil", "0", "")],
        [("a", "2", "{outside}"), ("a", "5", ""), ("a/evil", "0", "")],
        [("a/b", "2", "{outside}"), ("a/b/c", "2", "x"), ("a/b/evil", "0", "")],
        [("evil", "2", "{outside}/evil"), ("evil", "0", "")],
        [("a", "1", "../secret"), ("a", "0", "")],
        [("a", "1", "{outside}/secret")],
        [("s", "2", "{outside}/secret"), ("h", "1", "s"), ("h", "0", "")],
    ],
)
def test_no_stream_writes_outside(members: list[tuple[str, str, str]], tmp_path: Path) -> None:
    outside, into = tmp_path / "outside", tmp_path / "outside" / "into"
    into.mkdir(parents=True)
    (outside / "secret").write_text("untouched")
    fill = {"outside": str(outside)}
    unpack(stream(*((name.format(**fill), kind, link.format(**fill)) for name, kind, link in members)), into=into)
    assert sorted(path.name for path in outside.iterdir()) == ["into", "secret"]
    assert (outside / "secret").read_text() == "untouched"
    for path in into.rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o7000 == 0
            assert not path.is_file() or path.read_text() == "evil"


def test_a_name_is_shown_on_one_line_and_moves_no_cursor() -> None:
    assert printable("a\nb\x1b[2J\\" + os.fsdecode(b"\xff") + "ä") == "a\\nb\\x1b[2J\\\\\\xffä"
