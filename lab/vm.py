"""Virtual machines of the lab: defined through libvirt, really running, removed without a trace.

Most tests of backups need a disk that changes in known places, not an operating system: such a VM has none, idles in
its BIOS, and :meth:`LabVm.guest_io` makes the writes of its guest. A VM with ``operating_system=True`` boots the guest
of :mod:`lab.guest` and is spoken to through :meth:`LabVm.console`.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import string
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from lab import guest
from lab.console import Console

URI = "qemu:///system"
KVM = Path("/dev/kvm")
QEMU_USER = "libvirt-qemu"  # on Debian and Ubuntu
# QEMU runs as a user of its own, who can reach libvirt's directory of images and rarely a checkout in a home directory.
IMAGES = Path("/var/lib/libvirt/images/nasbackup-lab")
GUEST_IMAGES = IMAGES / "_guest"
LOGS = Path("/var/log/libvirt/qemu")
PID_FILES = Path("/run/libvirt/qemu")

MEMORY_MIB = 96  # for the guest
MEMORY_MIB_WITHOUT_OS = 16
TCG_CACHE_MIB = 32  # else QEMU takes as much for translated code as the host's memory suggests
KVM_PROBE_SECONDS = 5.0
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=3 panic=-1"

Accelerator = Literal["kvm", "qemu"]  # as in <domain type='…'>
_NAME = re.compile(r"[a-zA-Z0-9][\w.-]*", re.ASCII)

# libvirt's default handler prints every error to stderr, also those that the caller expects and handles.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class LabError(Exception):
    """Something in the lab did not do what it was told."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    size: int  # bytes
    filesystem: bool = False  # an ext4 file system over the whole disk, or nothing


@dataclass(frozen=True, kw_only=True)
class Bitmap:
    name: str
    count: int  # dirty bytes
    granularity: int
    recording: bool
    busy: bool
    inconsistent: bool


def connect(*, uri: str = URI) -> Any:
    return libvirt.open(uri)


# --- which accelerator ----------------------------------------------------------------------------------------


def accelerator(*, cache: Path = guest.CACHE) -> Accelerator:
    """``kvm`` if a guest really boots with it, else ``qemu`` (emulation). Tried once per boot of the machine.

    A KVM device proves nothing: QEMU's user may not open it, or (nested) it may not get through a kernel's boot.
    """
    if not KVM.exists():
        return "qemu"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with guest.locked(cache / "accelerator.lock"):
            return _cached_verdict(cache) or _find_out(cache)
    except Exception:  # whatever keeps us from asking: emulation always works
        return "qemu"


def _cached_verdict(cache: Path) -> Accelerator | None:
    try:
        stored = json.loads((cache / "accelerator.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return stored["accelerator"] if stored["circumstances"] == _circumstances() else None


def _find_out(cache: Path) -> Accelerator:
    verdict: Accelerator = "kvm" if _boots_under_kvm(publish(guest.build(cache=cache))) else "qemu"
    temporary = cache / "accelerator.json.new"
    temporary.write_text(json.dumps({"accelerator": verdict, "circumstances": _circumstances()}))
    temporary.replace(cache / "accelerator.json")
    return verdict


def _circumstances() -> str:
    """What the verdict depends on: this boot of this machine, and who may open the device."""
    device = KVM.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"boot {boot}, device {device.st_mode:o} {device.st_uid}:{device.st_gid}"


def _boots_under_kvm(boot: Published) -> bool:
    # Straight from QEMU and as libvirt's user: with a KVM device that this user may not open, libvirt itself takes
    # most of a minute to say so, because it asks QEMU for its capabilities again and again.
    command = [
        *("qemu-system-x86_64", "-accel", "kvm", "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none"),
        *("-no-reboot", "-serial", "stdio", "-kernel", str(boot.kernel), "-initrd", str(boot.initrd)),
        *("-append", KERNEL_ARGUMENTS),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **_as_qemu_user()
    ) as process:
        assert process.stdout is not None
        try:
            return _says_ready(process.stdout.fileno(), timeout=KVM_PROBE_SECONDS)
        finally:
            process.kill()


def _as_qemu_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(QEMU_USER)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}


def _says_ready(output: int, *, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    seen = b""
    while select.select([output], [], [], max(deadline - time.monotonic(), 0))[0]:
        data = os.read(output, 4096)
        if not data:
            return False
        seen += data
        if b"READY" in seen:
            return True
    return False


# --- disks and definition -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Published:
    """Kernel and initramfs where QEMU's user can read them."""

    kernel: Path
    initrd: Path


def publish(built: guest.Guest) -> Published:
    """Shared by all VMs and never changed in place: a VM restored from a backup still finds what it boots from."""
    _make_directory(GUEST_IMAGES)
    published = Published(
        kernel=GUEST_IMAGES / f"vmlinuz-{built.digest}",
        initrd=GUEST_IMAGES / f"initrd-{built.digest}.img",
    )
    for source, target in ((built.kernel, published.kernel), (built.initrd, published.initrd)):
        if not target.exists():
            temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
            shutil.copyfile(source, temporary)
            temporary.chmod(0o644)
            temporary.replace(target)
    return published


def _make_directory(path: Path) -> None:
    """One that QEMU's user can pass through, whatever our umask."""
    for directory in (IMAGES, path):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o711)


def create_disk(path: Path, *, volume: Volume) -> None:
    """A qcow2 image, empty or with an ext4 file system."""
    if not volume.filesystem:
        _run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(volume.size)])
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".raw") as raw:
        raw.truncate(volume.size)
        # Everything is initialised here: the kernel of a lazily made file system writes for minutes after the mount.
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        # Few inodes and a small journal: less to write here and to copy in each full backup.
        _run(["mkfs.ext4", "-q", "-E", options, "-i", "65536", "-J", "size=4", raw.name])
        _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw.name, str(path)])


def define_vm(connection: Any, *, name: str, volumes: Sequence[Volume], operating_system: bool = False) -> LabVm:
    """A persistent, stopped VM with these disks, called vda, vdb… in this order."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not fit for the name of a VM and its directory: {name!r}")
    directory = IMAGES / name
    _make_directory(directory)
    disks = {f"vd{letter}": directory / f"vd{letter}.qcow2" for letter in string.ascii_lowercase[: len(volumes)]}
    for path, volume in zip(disks.values(), volumes, strict=True):
        create_disk(path, volume=volume)
    boot = publish(guest.build()) if operating_system else None
    connection.defineXML(domain_xml(name=name, kind=accelerator(), disks=disks, boot=boot))
    return LabVm(connection=connection, name=name)


def domain_xml(*, name: str, kind: Accelerator, disks: Mapping[str, Path], boot: Published | None) -> str:
    """No network, no graphics, no USB (its controller wakes an idle emulator all the time), one serial console.

    With an operating system there is also the channel on which libvirt speaks with the guest agent.
    """
    memory = MEMORY_MIB if boot else MEMORY_MIB_WITHOUT_OS
    tcg = f"<tcg><tb-cache unit='MiB'>{TCG_CACHE_MIB}</tb-cache></tcg>" if kind == "qemu" else ""
    direct_boot = (
        f"""
        <kernel>{boot.kernel}</kernel>
        <initrd>{boot.initrd}</initrd>
        <cmdline>{KERNEL_ARGUMENTS}</cmdline>"""
        if boot
        else ""
    )
    agent = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>" if boot else ""
    # The machine type `pc` takes hot-plugged disks without further ado; q35 would need ports set aside for them.
    return f"""
    <domain type='{kind}'>
      <name>{name}</name>
      <memory unit='MiB'>{memory}</memory>
      <vcpu>1</vcpu>
      <os>
        <type arch='x86_64' machine='pc'>hvm</type>{direct_boot}
      </os>
      <features><acpi/><apic/>{tcg}</features>
      <on_reboot>destroy</on_reboot>
      <on_crash>destroy</on_crash>
      <devices>
        {"".join(disk_xml(target=target, path=path) for target, path in disks.items())}
        <controller type='usb' model='none'/>
        <memballoon model='none'/>
        <serial type='pty'/>
        {agent}
      </devices>
    </domain>
    """


def disk_xml(*, target: str, path: Path) -> str:
    # The guest's discards reach the image; zeros that it writes stay writes (detect_zeroes is off by default).
    return f"""
        <disk type='file' device='disk'>
          <driver name='qemu' type='qcow2' discard='unmap'/>
          <source file='{path}'/>
          <target dev='{target}' bus='virtio'/>
        </disk>"""


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"{' '.join(command)} failed: {result.stderr.strip()}")


# --- one VM ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class LabVm:
    """A handle by name: works for any VM of the connection, also one that a restore has made."""

    connection: Any
    name: str
    _console: Console | None = field(default=None, init=False, repr=False)
    _console_of: int = field(default=-1, init=False, repr=False)  # the run (domain id) that the console belongs to

    @property
    def domain(self) -> Any:
        return self.connection.lookupByName(self.name)

    @property
    def uuid(self) -> str:
        return str(self.domain.UUIDString())

    @property
    def running(self) -> bool:
        return bool(self.domain.isActive())

    @property
    def directory(self) -> Path:
        return IMAGES / self.name

    @property
    def disks(self) -> dict[str, Path]:
        """Target → image."""
        return {
            disk.find("target").get("dev"): Path(disk.find("source").get("file"))  # type: ignore[union-attr,arg-type,misc]
            for disk in _disk_elements(self.domain)
        }

    @property
    def operating_system(self) -> bool:
        return ElementTree.fromstring(self.domain.XMLDesc()).find("os/kernel") is not None

    def start(self, *, timeout: float = 60) -> None:
        """Starts the VM; an operating system obeys commands on return."""
        self.domain.create()
        if self.operating_system:
            self.console(timeout=timeout)

    def console(self, *, timeout: float = 60) -> Console:
        """The guest's console, once it obeys commands."""
        domain = self.domain
        if self._console is None or self._console_of != domain.ID():
            self.close()
            self._console, self._console_of = Console(pty=_pty(domain)), domain.ID()
            self._console.wait_ready(timeout=timeout)
        return self._console

    def wait_agent(self, *, connected: bool = True, timeout: float = 10) -> None:
        """Until libvirt sees the guest agent's end of the channel open (or closed)."""
        wanted = "connected" if connected else "disconnected"
        deadline = time.monotonic() + timeout
        while True:
            target = ElementTree.fromstring(self.domain.XMLDesc()).find("devices/channel/target")
            state = target.get("state") if target is not None else None
            if state == wanted:
                return
            if time.monotonic() > deadline:
                raise LabError(f"the guest agent of {self.name} is {state}, not {wanted}, after {timeout:g} s")
            time.sleep(0.02)

    def shutdown(self, *, timeout: float = 30) -> None:
        """Presses the power button until the guest has powered off (while booting it does not notice)."""
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} has not shut down after {timeout:g} s")
            with suppress(libvirt.libvirtError):  # it may have gone just now
                self.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            self._wait_off(timeout=min(3, deadline - time.monotonic()))
        self.close()

    def destroy(self) -> None:
        """Pulls the plug on the guest. QEMU still ends in order: bitmaps are saved."""
        if self.running:
            self.domain.destroy()
        self.close()

    def crash(self) -> None:
        """Kills QEMU. Bitmaps that were in the image are left flagged in-use, those of this run are lost."""
        os.kill(int((PID_FILES / f"{self.name}.pid").read_text()), signal.SIGKILL)
        if not self._wait_off(timeout=30):
            raise LabError(f"libvirt has not noticed the end of {self.name}")
        self.close()

    def remove(self) -> None:
        """Removes everything: VM, metadata of checkpoints and snapshots, disks. No matter how much of it there is."""
        self.close()
        try:
            domain = self.domain
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
        else:
            if domain.isActive():
                domain.destroy()
            if domain.isPersistent():
                domain.undefineFlags(
                    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
                )
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def close(self) -> None:
        """Lets go of the console; the VM is left as it is."""
        if self._console is not None:
            self._console.close()
        self._console, self._console_of = None, -1

    def attach(self, *, volume: Volume) -> str:
        """Adds a disk, into the running VM too; returns its target."""
        used = self.disks
        target = next(f"vd{letter}" for letter in string.ascii_lowercase if f"vd{letter}" not in used)
        # A disk that was detached leaves its image behind.
        path = self.directory / f"{target}-{secrets.token_hex(4)}.qcow2"
        create_disk(path, volume=volume)
        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if self.running else 0)
        self.domain.attachDeviceFlags(disk_xml(target=target, path=path), flags)
        return target

    def guest_io(self, target: str, *commands: str, timeout: float = 10) -> None:
        """Reads and writes as the guest does, e.g. ``write -P 0xab 64M 4M``, ``write -z -u 0 1M``, ``discard 0 1M``.

        The monitor says nothing of the outcome: qemu-io prints it to QEMU's stdout, which is the VM's log. So a last
        command that cannot exist marks the end, and everything logged before it is judged. ``read -P`` thereby
        asserts contents.
        """
        device = f"/machine/peripheral/{self._aliases()[target]}/virtio-backend"
        end = f"end-{secrets.token_hex(8)}"
        log = LOGS / f"{self.name}.log"
        offset = log.stat().st_size
        for command in (*commands, end):
            if '"' in command:
                raise ValueError(f"no quotes in {command!r}, please")
            said = libvirt_qemu.qemuMonitorCommand(
                self.domain, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            ).strip()
            if said:
                raise LabError(f"{self.name} {target}: {command}: {said}")
        printed = _read_until(log, offset=offset, end=end, timeout=timeout)
        if failures := [line for line in printed.splitlines() if _is_failure(line)]:
            raise LabError(f"{self.name} {target}: {'; '.join(commands)}: {'; '.join(failures)}")

    def dirty_bitmaps(self) -> dict[str, dict[str, Bitmap]]:
        """Disk target → name of bitmap → bitmap, of the running VM."""
        # By node and not by drive: while a backup job runs, the drive's top node is the job's filter.
        nodes = self.qmp("query-named-block-nodes", flat=True)
        found: dict[str, dict[str, Bitmap]] = {}
        for target, path in self.disks.items():
            bitmaps = [
                bitmap
                for node in nodes
                if node["drv"] == "qcow2" and node["file"] == str(path)
                for bitmap in node.get("dirty-bitmaps", [])
            ]
            found[target] = {bitmap["name"]: _bitmap(bitmap) for bitmap in bitmaps if "name" in bitmap}
        return found

    def qmp(self, command: str, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, request, 0))["return"]

    def _aliases(self) -> dict[str, str]:
        return {
            disk.find("target").get("dev"): disk.find("alias").get("name")  # type: ignore[union-attr,misc]
            for disk in _disk_elements(self.domain)
        }

    def _wait_off(self, *, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@contextmanager
def lab_vm(
    connection: Any, *, name: str, volumes: Sequence[Volume], operating_system: bool = False, start: bool = True
) -> Iterator[LabVm]:
    """A VM for as long as the block lasts; what a killed run left under this name is removed first."""
    LabVm(connection=connection, name=name).remove()
    vm = LabVm(connection=connection, name=name)
    try:
        vm = define_vm(connection, name=name, volumes=volumes, operating_system=operating_system)
        if start:
            vm.start()
        yield vm
    finally:
        vm.remove()


def _disk_elements(domain: Any) -> list[ElementTree.Element]:
    return ElementTree.fromstring(domain.XMLDesc()).findall("devices/disk[@device='disk']")


def _pty(domain: Any) -> str:
    source = ElementTree.fromstring(domain.XMLDesc()).find("devices/serial/source")
    path = source.get("path") if source is not None else None
    if path is None:
        raise LabError(f"{domain.name()} is not running or has no serial console")
    return path


def _bitmap(data: Mapping[str, Any]) -> Bitmap:
    return Bitmap(
        name=data["name"],
        count=data["count"],
        granularity=data["granularity"],
        recording=data["recording"],
        busy=data["busy"],
        inconsistent=data.get("inconsistent", False),
    )


def _read_until(log: Path, *, offset: int, end: str, timeout: float) -> str:
    """What was logged since the offset, up to the line that has the end in it. virtlogd writes with some delay."""
    deadline = time.monotonic() + timeout
    while True:
        content = log.read_bytes()
        # A log that is shorter than it was has been rotated.
        text = content[offset if offset <= len(content) else 0 :].decode(errors="replace")
        before, found, _ = text.partition(f'command "{end}" not found')
        if found:
            return before
        if time.monotonic() > deadline:
            raise LabError(f"{log} does not show the end of the commands after {timeout:g} s")
        time.sleep(0.002)


def _is_failure(line: str) -> bool:
    if done := re.match(r"(?:wrote|read|discard) (\d+)/(\d+) bytes at offset", line):
        return done[1] != done[2]
    statistics = re.match(r"[\d.]+ \w+, \d+ ops; ", line)
    from_libvirt = re.match(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", line)  # e.g. that the domain is tainted
    return bool(line.strip()) and not statistics and not from_libvirt
