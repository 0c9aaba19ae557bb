"""The disks of a definition become image files: pure. They are matched by source, whatever their order or targets."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nasbackup.hypervisor.new_disk import DEFAULT_BUS, disk_xml, next_target, prefix_of, usual_bus
from nasbackup.hypervisor.xml import disk_source


@dataclass(frozen=True, kw_only=True)
class DiskFile:
    """What a disk becomes: an image file. ``backing``: what lies below it and is only read; None: it stands alone.

    ``target``: where the guest had it, for a disk that the definition lacks; None: the next free one.
    """

    file: str
    format: str
    backing: DiskFile | None = None
    target: str | None = None


def become_files(root: ET.Element, *, vm: str, disks: Mapping[str, DiskFile], media: Collection[str]) -> list[str]:
    """Every disk of ``disks`` is its file, and no other disk is left. Returns what is to be told. Raises NoFreeTarget.

    A definition is that of the VM's next start, so it may lack a disk that was attached to the running VM alone.
    """
    notes, missing, buses = [], dict(disks), _buses(root)
    for parent in root.iterfind("./devices"):
        for disk in parent.findall("disk"):
            source, kind = disk_source(disk), disk.get("device", "disk")
            target = disk.find("target")
            called = target.get("dev", "?") if target is not None else "?"
            if source in disks:
                missing.pop(source, None)
                if _is_encrypted(disk):
                    notes.append(f"disk {called} was encrypted; the restored one is plain")
                _become_file(disk, disks[source])
            elif kind in ("cdrom", "floppy"):
                if disk.find("source") is not None and source not in media:
                    notes.append(f"{kind} {called} is empty: {source or 'its medium'} is not there")
                    _empty(disk)
            elif not (disk.find("readonly") is not None and source in media):
                notes.append(
                    f"disk {called} ({source or 'of a kind of its own'}) is left out: it is none of the volumes that "
                    "are restored"
                )
                parent.remove(disk)
    return notes + [_add(root, vm=vm, source=source, image=image, buses=buses) for source, image in missing.items()]


def _add(root: ET.Element, *, vm: str, source: str, image: DiskFile, buses: Mapping[str, str]) -> str:
    """A disk that only the running VM had. Nothing more is known of it than what the backup says."""
    used = {target.get("dev", "") for target in root.iterfind("./devices/disk/target")}
    wanted = image.target or ""
    begins = prefix_of(wanted)
    bus = buses.get(begins) or usual_bus(begins) or next(iter(buses.values()), DEFAULT_BUS)
    if not wanted or wanted in used:
        wanted = next_target([ET.tostring(root, encoding="unicode")], bus=bus, vm=vm)
    disk = ET.fromstring(disk_xml(file=image.file, image_format=image.format, target=wanted, bus=bus))
    _become_file(disk, image)
    devices = root.find("./devices")
    (ET.SubElement(root, "devices") if devices is None else devices).append(disk)
    return (
        f"disk {wanted} ({source}) was attached to the running VM alone, not to its definition: it is a plain {bus} "
        "disk now, without a serial number or a place in the boot order"
    )


def _buses(root: ET.Element) -> dict[str, str]:
    """How a target begins -> its bus, as in this VM; that of its first disk comes first."""
    found: dict[str, str] = {}
    for disk in root.iterfind("./devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("bus") and disk.get("device", "disk") == "disk":
            found.setdefault(prefix_of(target.get("dev", "")), target.get("bus", ""))
    return found


def _is_encrypted(disk: ET.Element) -> bool:
    return disk.find("encryption") is not None or disk.find("source/encryption") is not None


def _become_file(disk: ET.Element, image: DiskFile) -> None:
    position = 0
    for index, child in reversed(list(enumerate(disk))):
        # What describes the old image, or was the old process's.
        if child.tag in ("source", "backingStore", "mirror", "encryption", "auth", "state"):
            disk.remove(child)
            position = index
    disk.set("type", "file")
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver", name="qemu")
        disk.insert(0, driver)
        position += 1
    driver.set("type", image.format)
    source = ET.Element("source", file=image.file)
    disk.insert(position, source)
    if image.backing is not None:
        disk.insert(position + 1, _backing(image.backing))


def _backing(image: DiskFile) -> ET.Element:
    """Spelled out to its end, so that nothing is probed, and none of it gets another owner: it is somebody's backup."""
    element = ET.Element("backingStore", type="file")
    ET.SubElement(element, "format", type=image.format)
    ET.SubElement(ET.SubElement(element, "source", file=image.file), "seclabel", model="dac", relabel="no")
    element.append(ET.Element("backingStore") if image.backing is None else _backing(image.backing))
    return element


def _empty(disk: ET.Element) -> None:
    for tag in ("source", "backingStore", "mirror"):
        for found in disk.findall(tag):
            disk.remove(found)
    disk.set("type", "file")
