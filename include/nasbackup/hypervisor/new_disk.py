"""Where a disk that comes to a VM gets its place, and how libvirt is told: pure.

The names of targets: https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms
"""

from __future__ import annotations

import string
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import chain, product

from nasbackup.errors import NoFreeTarget
from nasbackup.hypervisor import xml

_PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd", "xen": "xvd"}
_MOST = {"ide": 4, "fdc": 2}
DEFAULT_BUS = "virtio"


def prefix_of(target: str) -> str:
    """How the target's name begins, which tells of the bus: ``vd`` of ``vdb``."""
    return target[:3] if target.startswith("xvd") else target[:2]


def usual_bus(prefix: str) -> str | None:
    """The bus that libvirt takes for targets that begin so, when none is named."""
    return next((bus for bus, begins in _PREFIXES.items() if begins == prefix), None)


def bus_of(domain_xml: str, *, target: str | None = None) -> str | None:
    """Of the disk at this target; None: of the VM's first disk."""
    for disk in ET.fromstring(domain_xml).iterfind("./devices/disk"):
        found = disk.find("target")
        if found is None:
            continue
        if found.get("dev") == target or (target is None and disk.get("device", "disk") == "disk"):
            return found.get("bus") or DEFAULT_BUS
    return None


def next_target(domain_xmls: list[str], *, bus: str, vm: str) -> str:
    """The first name on the bus that is free in all of these: the running VM, its definition. Raises NoFreeTarget."""
    used = {disk.target for document in domain_xmls for disk in xml.parse_disks(document)}
    prefix = _PREFIXES.get(bus, "vd")
    for number, letters in enumerate(_letters()):
        if number >= _MOST.get(bus, 256):
            break
        if prefix + letters not in used:
            return prefix + letters
    raise NoFreeTarget(vm=vm, bus=bus)


def disk_xml(*, file: str, image_format: str, target: str, bus: str) -> str:
    disk = ET.Element("disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type=image_format)
    ET.SubElement(disk, "source", file=file)
    ET.SubElement(disk, "target", dev=target, bus=bus)
    return ET.tostring(disk, encoding="unicode")


def _letters() -> Iterator[str]:
    letters = string.ascii_lowercase
    return chain(letters, ("".join(pair) for pair in product(letters, letters)))
