"""The lab itself: what the other integration tests and the demo lean on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import libvirt
import pytest

from lab import accelerator as choosing
from lab import guest
from lab.console import ConsoleError, GuestCommandError
from lab.vm import IMAGES, LabError, LabVm, Volume, _is_failure, accelerator, connect, lab_vm

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    connection = connect()
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def idle(connection: Any) -> Iterator[LabVm]:
    """A VM without an operating system."""
    with lab_vm(connection, name="lab-test-idle", volumes=[Volume(size=64 * MIB), Volume(size=64 * MIB)]) as vm:
        yield vm


@pytest.fixture
def linux(connection: Any) -> Iterator[LabVm]:
    volumes = [Volume(size=64 * MIB, filesystem=True), Volume(size=48 * MIB, filesystem=True)]
    with lab_vm(connection, name="lab-test-linux", volumes=volumes, operating_system=True) as vm:
        yield vm


def read_file(image: Path, name: str, *, scratch: Path) -> bytes:
    """A file out of an ext4 image, without mounting it."""
    raw, out = scratch / "image.raw", scratch / "file"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    subprocess.run(["debugfs", "-R", f"dump {name} {out}", raw], check=True, capture_output=True)
    return out.read_bytes()


def read_image(image: Path, *, offset: int, length: int, scratch: Path) -> bytes:
    raw = scratch / "image.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    with raw.open("rb") as file:
        file.seek(offset)
        return file.read(length)


# --- building and choosing ------------------------------------------------------------------------------------


def not_again(*_: object) -> NoReturn:
    pytest.fail("once is enough")


def test_second_build_of_the_guest_is_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = guest.build()
    monkeypatch.setattr(guest, "_build", not_again)
    assert guest.build() == first
    assert first.kernel.stat().st_size > MIB
    assert first.initrd.stat().st_size > MIB / 4


def test_choice_of_the_accelerator_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    first = accelerator()
    monkeypatch.setattr(choosing, "_boots_under_kvm", not_again)
    assert accelerator() == first
    assert first in ("kvm", "qemu")


def test_choice_of_the_accelerator_is_made_anew_after_a_boot_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    first = accelerator()
    stored = guest.CACHE / "accelerator.json"
    if not stored.exists():
        pytest.skip("without a KVM device there is nothing to cache")
    stored.write_text(json.dumps({"accelerator": "kvm" if first == "qemu" else "qemu", "circumstances": "earlier"}))
    if first == "qemu":  # what did not boot in the usual time is not waited for that long once more
        monkeypatch.setattr(choosing, "KVM_PROBE_SECONDS", 3.0)
    begin = time.monotonic()
    assert accelerator() == first
    assert time.monotonic() - begin < 30, "libvirt, asked instead, may take most of a minute"


# --- with an operating system ---------------------------------------------------------------------------------


def test_guest_boots_answers_writes_and_shuts_down_cleanly(linux: LabVm, tmp_path: Path) -> None:
    console = linux.console()
    reported = {name: console.write("vda", name, kib=kib) for name, kib in (("a", 1), ("b.bin", 700))}
    console.write("vda", "gone", kib=4)
    console.remove("vda", "gone")
    elsewhere = console.write("vdb", "a", kib=5)
    assert console.sums("vda") == reported
    assert console.sums("vdb") == {"a": elsewhere}

    disks = linux.disks
    linux.shutdown()
    for name, digest in reported.items():
        assert hashlib.sha256(read_file(disks["vda"], f"/keep/{name}", scratch=tmp_path)).hexdigest() == digest
    assert hashlib.sha256(read_file(disks["vdb"], "/keep/a", scratch=tmp_path)).hexdigest() == elsewhere
    # The background writer has been at work on both, in the order of the disks.
    ticks = [int(read_file(disks[target], "/tick", scratch=tmp_path)) for target in ("vda", "vdb")]
    assert ticks[0] > 0
    assert ticks[0] - ticks[1] in (0, 1)
    checked = subprocess.run(["e2fsck", "-fn", tmp_path / "image.raw"], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout

    linux.start()
    assert linux.console().sums("vda") == reported


def test_guest_says_what_went_wrong(linux: LabVm) -> None:
    console = linux.console()
    with pytest.raises(GuestCommandError, match="No space left"):
        console.write("vdb", "too-big", kib=64 * 1024)
    with pytest.raises(GuestCommandError, match="no file system at /data/vdz"):
        console.sums("vdz")
    with pytest.raises(GuestCommandError, match="cannot mount /dev/vdz"):
        console.mount("vdz")
    with pytest.raises(ValueError, match="not fit"):
        console.write("vda", "two words", kib=1)


def test_silent_guest_is_reported_with_the_last_output(linux: LabVm) -> None:
    console = linux.console()
    linux.domain.suspend()
    with pytest.raises(ConsoleError, match=r"no answer to 'sync' within 0\.5 s; last output"):
        console.command("sync", timeout=0.5)
    linux.domain.resume()
    console.sync()  # the late answer to the first command is not taken for this one's

    linux.domain.destroy()
    with pytest.raises(ConsoleError, match="the console is gone"):
        console.sync()


def test_disk_can_be_plugged_into_the_running_guest(linux: LabVm, tmp_path: Path) -> None:
    target = linux.attach(volume=Volume(size=32 * MIB, filesystem=True))
    console = linux.console()
    console.mount(target)
    digest = console.write(target, "new", kib=20)
    image = linux.disks[target]
    console.unmount(target)
    linux.shutdown()
    assert hashlib.sha256(read_file(image, "/keep/new", scratch=tmp_path)).hexdigest() == digest


def test_guest_agent_freezes_and_thaws_stops_and_starts(linux: LabVm) -> None:
    console = linux.console()
    linux.wait_agent()
    assert not console.is_frozen("vda")
    assert linux.domain.fsFreeze() == 2
    assert console.is_frozen("vda")
    assert console.is_frozen("vdb")
    console.agent("stop")
    linux.wait_agent(connected=False)
    console.agent("start")
    linux.wait_agent()
    assert linux.domain.fsThaw() == 2, "the new agent knows what the one before it has frozen"
    assert not console.is_frozen("vda")

    linux.domain.agentSetResponseTimeout(1)
    console.agent("hang")
    with pytest.raises(libvirt.libvirtError, match="agent"):
        linux.domain.getTime()
    console.agent("resume")
    linux.domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_DEFAULT)
    assert linux.domain.getTime()["seconds"] > 0


# --- without one ----------------------------------------------------------------------------------------------


def test_guest_io_reaches_the_image_at_its_offset(idle: LabVm, tmp_path: Path) -> None:
    idle.guest_io("vda", "write -P 0xab 5M 64k", "read -P 0xab 5M 64k")
    idle.guest_io("vdb", "write -P 0xcd 7M 64k")
    idle.guest_io("vdb", "write -z -u 7M 4k", "flush")
    for target in ("vda", "vdb"):
        idle.guest_io(target, "flush")
    window = read_image(idle.disks["vda"], offset=5 * MIB - 1, length=65536 + 2, scratch=tmp_path)
    assert window == b"\0" + b"\xab" * 65536 + b"\0"
    window = read_image(idle.disks["vdb"], offset=7 * MIB, length=65536, scratch=tmp_path)
    assert window == b"\0" * 4096 + b"\xcd" * (65536 - 4096)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("read -P 0x77 60M 64k", "Pattern verification failed"),
        ("write -P 1 1G 4k", "Input/output error"),
        ("wriet 0 4k", "not found"),
    ],
)
def test_failed_guest_io_raises(idle: LabVm, command: str, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        idle.guest_io("vda", "write -P 1 0 4k", command)


def test_what_qemu_says_when_it_starts_is_no_failure_of_guest_io() -> None:
    """It can come late: virtlogd writes it."""
    said = "char device redirected to /dev/pts/12 (label charserial0)"
    assert not _is_failure(said)
    assert _is_failure(f"{said} or not")
    assert _is_failure(said.replace("charserial0", "another"))


def test_guest_io_marks_dirty_bitmaps_also_of_a_plugged_disk(idle: LabVm) -> None:
    plugged = idle.attach(volume=Volume(size=32 * MIB))
    idle.domain.checkpointCreateXML("<domaincheckpoint><name>backup-1</name></domaincheckpoint>")
    idle.guest_io("vda", "write -P 1 10M 128k")
    idle.guest_io(plugged, "write -P 1 0 4k")
    bitmaps = {target: found["backup-1"] for target, found in idle.dirty_bitmaps().items()}
    assert {target: bitmap.count for target, bitmap in bitmaps.items()} == {"vda": 131072, "vdb": 0, plugged: 65536}
    assert all(bitmap.recording and not bitmap.busy and not bitmap.inconsistent for bitmap in bitmaps.values())


def test_crash_leaves_stored_bitmaps_inconsistent(connection: Any) -> None:
    with lab_vm(connection, name="lab-test-crash", volumes=[Volume(size=16 * MIB)]) as vm:
        vm.domain.checkpointCreateXML("<domaincheckpoint><name>backup-1</name></domaincheckpoint>")
        vm.destroy()  # a bitmap is written into its image only now
        vm.start()
        assert not vm.dirty_bitmaps()["vda"]["backup-1"].inconsistent
        vm.crash()
        vm.start()
        assert vm.dirty_bitmaps()["vda"]["backup-1"].inconsistent


def test_removal_leaves_nothing(connection: Any) -> None:
    with lab_vm(connection, name="lab-test-remove", volumes=[Volume(size=16 * MIB)]) as vm:
        vm.domain.checkpointCreateXML("<domaincheckpoint><name>backup-1</name></domaincheckpoint>")
        vm.attach(volume=Volume(size=16 * MIB))
    with pytest.raises(libvirt.libvirtError):
        connection.lookupByName("lab-test-remove")
    assert list(IMAGES.glob("*lab-test-remove*")) == []
    vm.remove()  # once more does no harm
