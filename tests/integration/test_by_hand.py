"""What people are told to type at night, typed: the way back after a restore, and a restore without this software."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from nasbackup.nas.publish import INSTRUCTIONS

from tests.integration.story import tool

DOCS = Path(__file__).parents[2] / "docs"


def shell(script: str, *, cwd: Path) -> None:
    done = subprocess.run(["bash", "-eu", "-c", script], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("is_directory", [False, True], ids=["volume", "state of the TPM"])
def test_the_way_back_after_a_restore_in_place(tmp_path: Path, is_directory: bool) -> None:
    (block,) = [block for block in blocks("restore.md") if ".before-" in block]
    path = tmp_path / "a b & c"
    time = "2026.02.01.03.12.44"
    for content, place in (("new", path), ("old", tmp_path / f"{path.name}.before-{time}")):
        if is_directory:
            place.mkdir()
        (place / "tpm2-00.permall" if is_directory else place).write_text(content)
    script = re.sub(r"^F=\S+ T=\S+", f"F='{path}' T={time}", block)
    assert script != block
    shell(script, cwd=tmp_path)
    there = {
        found.name: ((found / "tpm2-00.permall") if is_directory else found).read_text() for found in tmp_path.iterdir()
    }
    assert there == {path.name: "old", f"{path.name}.restored-{time}": "new"}


def test_an_image_is_written_over_all_that_a_volume_of_lvm_has(tmp_path: Path) -> None:
    (command,) = [line for block in blocks("restore.md") for line in block.splitlines() if "/dev/vg/" in line]
    image, device, expected = tmp_path / "vm-disk.qcow2", tmp_path / "lv", bytearray(4 << 20)
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(image), "4M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x41 1M 64k", "-c", "write -q -z 2M 64k", str(image))
    device.write_bytes(b"\xff" * len(expected))
    shell(command.replace("/srv/restored", str(tmp_path)).replace("/dev/vg/vm-disk", str(device)), cwd=tmp_path)
    expected[1 << 20 : (1 << 20) + (64 << 10)] = b"\x41" * (64 << 10)
    assert device.read_bytes() == expected


def test_restore_txt_is_enough_for_disks_firmware_and_tpm(tmp_path: Path) -> None:
    backup, to = tmp_path / "nas" / "2026.01.31.22.00.05", tmp_path / "to"
    backup.mkdir(parents=True)
    to.mkdir()
    file, uuid = "root.a b & c;d.qcow2", "5b1f2c1e-0000-4000-8000-000000000001"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(backup / file), "1M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x41 0 64k", str(backup / file))
    (backup / "domain.xml").write_text("<domain/>")
    (backup / "nvram.fd").write_bytes(b"variables")
    with tarfile.open(backup / "tpm.tar", "w") as archive:
        member = tarfile.TarInfo("./tpm2/tpm2-00.permall")
        member.size = 7
        archive.addfile(member, io.BytesIO(b"secrets"))
    before = {path.name: path.read_bytes() for path in backup.iterdir()}

    commands = [line.strip() for line in INSTRUCTIONS.decode().splitlines() if line.startswith("    ")]
    defined = [command for command in commands if command.startswith("virsh define")]
    assert defined == ["virsh define /root/vm.xml"]
    for command in commands:
        if command in defined:
            continue
        own = command.replace("/path/to", str(to)).replace("/root/", f"{to}/").replace("/var/lib", str(to))
        own = re.sub(r"\bNVRAM\b", f"'{to}/x_VARS.fd'", own).replace("UUID", uuid)
        shell(own.replace("TIME", backup.name).replace("FILE", file), cwd=backup.parent)
    assert {path.name: path.read_bytes() for path in backup.iterdir()} == before, "nothing changes on the NAS"
    assert (to / "vm.xml").read_text() == "<domain/>"
    assert (to / "x_VARS.fd").read_bytes() == b"variables"
    assert (to / "libvirt/swtpm" / uuid / "tpm2/tpm2-00.permall").read_bytes() == b"secrets"
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(backup / file), str(to / "restored.qcow2"))


@pytest.mark.parametrize("document", sorted(path.name for path in DOCS.glob("*.md")))
def test_nobody_is_told_to_edit_a_backup(document: str) -> None:
    """A definition that is to be edited is a copy, outside of the repository."""
    for block in blocks(document):
        for line in block.splitlines():
            found = re.match(r"\s*(virsh define|editor) (\S+)", line)
            assert found is None or found[2].startswith("/root/"), line


def blocks(document: str) -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", (DOCS / document).read_text(), re.DOTALL | re.MULTILINE)
