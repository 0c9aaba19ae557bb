"""Virtual machines of the lab: defined through libvirt, really running, removed without a trace.

Most tests of backups need a disk that changes in known places, not an operating system: such a VM has none, idles in
its BIOS, and :meth:`LabVm.guest_io` makes the writes of its guest. A VM with ``operating_system=True`` boots the guest
of :mod:`lab.guest` and is spoken to through :meth:`LabVm.console`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from lab import guest
from lab.accelerator import accelerator
from lab.console import Console
from lab.definition import Volume, create_disk, disk_xml, domain_xml, publish
from lab.places import GUEST_IMAGES, IMAGES, LOGS, PID_FILES, URI, LabError, connect, make_directory

__all__ = [
    "GUEST_IMAGES",
    "IMAGES",
    "URI",
    "Bitmap",
    "LabError",
    "LabVm",
    "Volume",
    "accelerator",
    "connect",
    "define_vm",
    "disk_xml",
    "lab_vm",
]

_NAME = re.compile(r"[a-zA-Z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Bitmap:
    name: str
    count: int  # dirty bytes
    granularity: int
    recording: bool
    busy: bool
    inconsistent: bool


def define_vm(connection: Any, *, name: str, volumes: Sequence[Volume], operating_system: bool = False) -> LabVm:
    """A persistent, stopped VM with these disks, called vda, vdb… in this order."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not fit for the name of a VM and its directory: {name!r}")
    directory = IMAGES / name
    make_directory(directory)
    disks = {f"vd{letter}": directory / f"vd{letter}.qcow2" for letter in string.ascii_lowercase[: len(volumes)]}
    for path, volume in zip(disks.values(), volumes, strict=True):
        create_disk(path, volume=volume)
    boot = publish(guest.build()) if operating_system else None
    connection.defineXML(domain_xml(name=name, kind=accelerator(), disks=disks, boot=boot))
    return LabVm(connection=connection, name=name)


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
    # QEMU says that first of all, but virtlogd may write it later than that somebody looked where the log ends.
    beginning = re.fullmatch(r"char device redirected to /dev/pts/\d+ \(label charserial0\)", line)
    from_libvirt = re.match(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", line)  # e.g. that the domain is tainted
    return bool(line.strip()) and not (statistics or beginning or from_libvirt)
