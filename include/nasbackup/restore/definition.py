"""From the definition in a backup to that of another VM: pure, XML in and XML out.

What made the VM that VM (name, UUID, MACs, fixed ports, paths of its own) becomes another's, or libvirt's to choose;
everything else stays as it was. What cannot be carried over is dropped and told. (Disks: ``disks``, other devices:
``devices``, and those of a VM that is shut away: ``isolation``.)
"""

from __future__ import annotations

import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from nasbackup import layout
from nasbackup.errors import DefinitionUnusable, ParamInvalid
from nasbackup.hypervisor.xml import disk_source, has_emulated_tpm, nvram_path
from nasbackup.restore import devices, isolation
from nasbackup.restore.disks import DiskFile, become_files

ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")

_LONGEST_NAME = 200
"""Bytes: libvirt makes file names of it (logs, sockets), with something before and behind."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """``notes``: sentences about what the new VM does not have, or has differently."""

    name: str
    uuid: str
    xml: str
    notes: tuple[str, ...]
    nvram: str | None
    """Where its UEFI variables are to be; None: it has none, or libvirt makes them from its template."""
    has_tpm: bool
    """An emulated one, whose state is a directory named by the VM's UUID."""


def redefine(
    domain_xml: str,
    *,
    name: str,
    disks: Mapping[str, DiskFile],
    uuid: str | None = None,
    keep_macs: bool = False,
    isolate: bool = False,
    nvram: str | None = None,
    media: Collection[str] = (),
) -> Definition:
    """The definition of a VM ``name`` whose disks are these files: ``disks`` maps the source of each to its file.

    A disk that it lacks is added: the running VM had it. ``uuid``: None makes a new one. ``keep_macs``: the VM takes
    the old one's place: its MACs, ports, paths of sockets and what it shares with its host stay. ``isolate``: for a VM
    that must reach nothing and disturb nobody: no network, no devices, directories or command lines of the host.
    ``nvram``: path of its UEFI variables; None leaves the choice to libvirt. ``media``: sources of read-only disks,
    CD-ROMs and floppies that exist and may be shared; the others are taken out. Raises DefinitionUnusable,
    ParamInvalid (the name), NoFreeTarget.
    """
    check_name(name)
    root = _parse(domain_xml)
    old_name = root.findtext("name") or "?"
    uuid = str(uuids.UUID(uuid)) if uuid else str(uuids.uuid4())
    _identify(root, name=name, uuid=uuid)
    notes = _firmware(root, nvram=nvram)
    notes += become_files(root, vm=old_name, disks=disks, media=frozenset(media))
    if isolate:
        notes += isolation.isolate(root)
    elif not keep_macs:
        notes += devices.become_another(root)
    notes += devices.have_own_state(root)
    for target in root.iterfind("./devices/interface/target"):
        target.attrib.pop("dev", None)  # the tap device on the host: libvirt names it
    document = ET.tostring(root, encoding="unicode")
    return Definition(
        name=name,
        uuid=uuid,
        xml=document,
        notes=tuple(notes),
        nvram=nvram if root.find("./os/nvram") is not None else None,
        has_tpm=has_emulated_tpm(document),
    )


def check_name(name: str) -> None:
    """Raises ParamInvalid for a name that libvirt, or a file system, does not take."""
    problem = None
    if not name.strip():
        problem = "a VM needs a name"
    elif "/" in name or name in (".", ".."):
        problem = "a VM's name is no path"
    elif not name.isprintable():
        problem = "it has characters that cannot be printed"
    elif name != name.strip():
        problem = "it begins or ends with a space"
    elif len(name.encode()) > _LONGEST_NAME:
        problem = f"it is longer than {_LONGEST_NAME} bytes"
    if problem:
        raise ParamInvalid(name="new_name", value=name, problem=problem)


def disk_sources(domain_xml: str) -> frozenset[str]:
    """Sources of all disks, CD-ROMs and floppies. Raises DefinitionUnusable."""
    return frozenset(filter(None, map(disk_source, _parse(domain_xml).iterfind("./devices/disk"))))


def new_nvram_path(domain_xml: str, *, name: str) -> str | None:
    """Beside the old one, under the new VM's name."""
    old = nvram_path(domain_xml)
    if old is None:
        return None
    return str(PurePath(old).parent / f"{layout.safe_component(name)}_VARS{PurePath(old).suffix or '.fd'}")


def _parse(domain_xml: str) -> ET.Element:
    try:
        root = ET.fromstring(domain_xml)
    except ET.ParseError as error:
        raise DefinitionUnusable(vm="?", problem=f"it is no XML ({error})") from error
    if root.tag != "domain":
        raise DefinitionUnusable(vm="?", problem=f"it is <{root.tag}>, not <domain>")
    return root


def _identify(root: ET.Element, *, name: str, uuid: str) -> None:
    root.attrib.pop("id", None)  # of the process it ran as
    _child(root, "name").text = name
    _child(root, "uuid").text = uuid
    for entry in root.iterfind("./sysinfo/system/entry[@name='uuid']"):
        entry.text = uuid  # libvirt refuses one that differs
    for generation in root.iterfind("./genid"):
        generation.text = None  # the guest has to see that it was rolled back or copied: libvirt makes a new one


def _child(root: ET.Element, tag: str) -> ET.Element:
    found = root.find(tag)
    if found is None:
        found = ET.Element(tag)
        root.insert(0, found)
    return found


def _firmware(root: ET.Element, *, nvram: str | None) -> list[str]:
    found, system = root.find("./os/nvram"), root.find("./os[@firmware='efi']")
    if found is None and system is not None and nvram is not None and system.find("loader[@stateless='yes']") is None:
        found = ET.SubElement(system, "nvram")  # libvirt would make them too, at a place of its own
    if found is None:
        return []
    notes = []
    if found.attrib.pop("type", "file") != "file":  # of <source>, which is replaced by a path: then there is none
        notes.append("its UEFI variables are not in a file of its host: the new VM starts with those of the template")
    for source in found.findall("source"):
        found.remove(source)
    found.text = nvram
    return notes
