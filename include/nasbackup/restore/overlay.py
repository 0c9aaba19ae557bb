"""A VM on an overlay: what it writes goes there, and what it has not written is read from the backup below."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nasbackup.model import BackupVolume
from nasbackup.restore.disks import DiskFile
from nasbackup.restore.files import doing, take_new_place
from nasbackup.restore.image import Located
from nasbackup.restore.plan import PlannedFile
from nasbackup.restore.serve import chain_tops
from nasbackup.transfer.lend import create_overlay, is_unused_overlay, lend, take_back


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """``file``: the VM's image of this volume. ``socket``: where the backup's is lent to it."""

    volume: BackupVolume
    file: Path
    socket: Path


def plan_overlays(volumes: Sequence[BackupVolume], *, directory: Path, socket_dir: str, key: str) -> list[Overlay]:
    """``key`` names the sockets: nobody else's have it."""
    return [
        Overlay(
            volume=volume,
            file=directory / f"{volume.name}.qcow2",
            socket=Path(socket_dir, f"{key}-{number}.nbd"),
        )
        for number, volume in enumerate(volumes)
    ]


def lend_all(located: Located, *, overlays: Sequence[Overlay]) -> None:
    """Raises BackupNotRestorable, ToolFailed, OSError."""
    tops = chain_tops(located, volumes=[overlay.volume for overlay in overlays])
    for overlay in overlays:
        lend(tops[overlay.volume.name], socket=overlay.socket)


def create_all(overlays: Sequence[Overlay]) -> None:
    """Each is complete when it gets its name. Raises TargetExists, ToolFailed, FileTrouble."""
    for overlay in overlays:
        staged = _staged(overlay)
        try:
            with doing("Removing", staged):
                staged.unlink(missing_ok=True)  # of a call that was killed
            create_overlay(staged, socket=overlay.socket, virtual_size=overlay.volume.virtual_size)
            take_new_place(PlannedFile(path=str(overlay.file), staged=str(staged)))
        finally:
            staged.unlink(missing_ok=True)


def remove_unused(overlays: Sequence[Overlay]) -> None:
    """Those that an earlier call has made and no VM has used. By whoever alone may make them. Raises FileTrouble."""
    for overlay in overlays:
        with doing("Removing", overlay.file):
            _staged(overlay).unlink(missing_ok=True)
            if is_unused_overlay(overlay.file, socket=overlay.socket):
                overlay.file.unlink()


def _staged(overlay: Overlay) -> Path:
    """The socket's name is nobody else's."""
    return overlay.file.with_name(f"{overlay.file.name}.{overlay.socket.stem}")


def take_back_all(overlays: Sequence[Overlay]) -> None:
    for overlay in overlays:
        take_back(overlay.socket)


def disk_files(overlays: Sequence[Overlay]) -> dict[str, DiskFile]:
    return {
        overlay.volume.source: DiskFile(file=str(overlay.file), format="qcow2", target=overlay.volume.target)
        for overlay in overlays
    }


def on_backup(definition: str, *, overlays: Sequence[Overlay]) -> str:
    """The definition, with what lies below each overlay: spelled out, so that libvirt probes nothing."""
    sockets = {str(overlay.file): str(overlay.socket) for overlay in overlays}
    root = ET.fromstring(definition)
    for disk in root.iterfind("./devices/disk"):
        source = disk.find("source")
        if source is not None and source.get("file") in sockets:
            disk.insert(list(disk).index(source) + 1, _lent(sockets[source.get("file", "")]))
    return ET.tostring(root, encoding="unicode")


def _lent(socket: str) -> ET.Element:
    backing = ET.Element("backingStore", type="network")
    ET.SubElement(backing, "format", type="raw")
    source = ET.SubElement(backing, "source", protocol="nbd")
    ET.SubElement(source, "host", transport="unix", socket=socket)
    ET.SubElement(backing, "backingStore")
    return backing


def with_console(definition: str) -> str:
    """A VM without a serial console gets one: what the guest says there is all there is to see of it."""
    root = ET.fromstring(definition)
    devices = root.find("./devices")
    if devices is not None and devices.find("serial") is None and devices.find("console") is None:
        ET.SubElement(devices, "serial", type="pty")
    return ET.tostring(root, encoding="unicode")


def has_agent(definition: str) -> bool:
    """Whether the VM has the channel on which a guest agent can answer."""
    targets: Mapping[str, object] = {
        target.get("name", ""): None for target in ET.fromstring(definition).iterfind("./devices/channel/target")
    }
    return "org.qemu.guest_agent.0" in targets
