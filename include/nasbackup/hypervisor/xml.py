"""libvirt's XML, read and written: pure functions.

Formats: https://libvirt.org/formatdomain.html, formatbackup.html and formatcheckpoint.html.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DiskElement:
    """A ``<disk>`` of a domain. ``source`` is empty when it has none that this project understands."""

    target: str
    source: str
    device: str
    type: str
    format: str
    readonly: bool
    encrypted: bool


@dataclass(frozen=True, kw_only=True)
class BackupDisk:
    """One disk of a backup job: ``incremental`` names the checkpoint that the copy starts from, None is a full."""

    target: str
    scratch: str
    incremental: str | None
    has_bitmap: bool


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a domain is called. ``metadata``: namespace URI -> all text below its element in ``<metadata>``."""

    title: str
    metadata: Mapping[str, str]


def parse_description(domain_xml: str) -> Description:
    root = ET.fromstring(domain_xml)
    metadata = {}
    for element in root.iterfind("./metadata/*"):
        if element.tag.startswith("{"):
            metadata[element.tag[1:].partition("}")[0]] = " ".join("".join(element.itertext()).split())
    return Description(title=" ".join(root.findtext("./title", "").split()), metadata=metadata)


def parse_disks(domain_xml: str) -> list[DiskElement]:
    disks = []
    for disk in ET.fromstring(domain_xml).iterfind("./devices/disk"):
        driver, target = disk.find("driver"), disk.find("target")
        if target is None:
            continue
        disks.append(
            DiskElement(
                target=target.get("dev", ""),
                source=disk_source(disk),
                device=disk.get("device", "disk"),
                type=disk.get("type", "file"),
                format=driver.get("type", "raw") if driver is not None else "raw",
                readonly=disk.find("readonly") is not None,
                encrypted=disk.find("encryption") is not None or disk.find("source/encryption") is not None,
            )
        )
    return disks


def disk_source(disk: ET.Element) -> str:
    """The identity of a ``<disk>``: its path or a URI; empty when it has none that this project understands."""
    kind, source = disk.get("type", "file"), disk.find("source")
    if source is None:
        return ""
    if kind == "network":
        host = source.find("host")
        where = "" if host is None else host.get("socket") or f"{host.get('name', '')}:{host.get('port', '')}"
        return f"{source.get('protocol')}://{where}/{source.get('name', '')}"
    attribute = {"file": "file", "block": "dev"}.get(kind)
    return source.get(attribute, "") if attribute else ""


def disks_with_a_chain(domain_xml: str) -> list[str]:
    """Targets of disks whose definition says what lies below their image; QEMU then does not ask the image."""
    return [
        target.get("dev", "")
        for disk in ET.fromstring(domain_xml).iterfind("./devices/disk")
        if disk.find("backingStore/source") is not None and (target := disk.find("target")) is not None
    ]


def nvram_path(domain_xml: str) -> str | None:
    """Where the VM has its UEFI variables: a file on its host; None when it has none, or not in a file."""
    found = ET.fromstring(domain_xml).find("./os/nvram")
    if found is None or found.get("type", "file") != "file":
        return None
    source = found.find("source")
    path = source.get("file", "") if source is not None else (found.text or "").strip()
    return path or None


def has_emulated_tpm(domain_xml: str) -> bool:
    """One whose state is a directory of libvirt's, named by the VM's UUID."""
    return ET.fromstring(domain_xml).find("./devices/tpm/backend[@type='emulator']") is not None


def backup_xml(*, socket: str, disks: Sequence[BackupDisk], all_targets: Sequence[str]) -> str:
    """A pull-mode job that serves ``disks`` at a Unix socket; every other disk of the domain is left out by name."""
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=socket)
    element = ET.SubElement(root, "disks")
    chosen = {disk.target: disk for disk in disks}
    for target in all_targets:
        disk = chosen.get(target)
        if disk is None:
            ET.SubElement(element, "disk", name=target, backup="no")
            continue
        attributes = {"name": target, "backup": "yes", "type": "file", "exportname": target}
        if disk.incremental is None:
            attributes["backupmode"] = "full"
        else:
            attributes |= {
                "backupmode": "incremental",
                "incremental": disk.incremental,
                "exportbitmap": export_bitmap(target),
            }
        ET.SubElement(ET.SubElement(element, "disk", attributes), "scratch", file=disk.scratch)
    return ET.tostring(root, encoding="unicode")


def checkpoint_xml(*, name: str, disks: Sequence[BackupDisk], all_targets: Sequence[str]) -> str:
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = "nasbackup: base of the next incremental backup"
    element = ET.SubElement(root, "disks")
    with_bitmap = {disk.target for disk in disks if disk.has_bitmap}
    for target in all_targets:
        ET.SubElement(element, "disk", name=target, checkpoint="bitmap" if target in with_bitmap else "no")
    return ET.tostring(root, encoding="unicode")


def redefine_xml(*, name: str, targets: Sequence[str], all_targets: Sequence[str]) -> str:
    """A checkpoint whose bitmaps exist already: without the list of disks libvirt would take it to have none."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    # libvirt insists on a time here and orders checkpoints by it; ours carry theirs in the name.
    ET.SubElement(root, "creationTime").text = name.rpartition("-")[2]
    element = ET.SubElement(root, "disks")
    for target in all_targets:
        ET.SubElement(element, "disk", name=target, checkpoint="bitmap" if target in targets else "no")
    return ET.tostring(root, encoding="unicode")


def export_bitmap(target: str) -> str:
    """The name under which the NBD server shows a disk's dirty bitmap (``qemu:dirty-bitmap:<name>``)."""
    return f"backup-{target}"


def parse_checkpoint_sizes(checkpoint_xml: str) -> dict[str, bool]:
    """Per disk target: whether libvirt could tell the size of its bitmap, which it can only when the bitmap is usable.

    From an XML made with VIR_DOMAIN_CHECKPOINT_XML_SIZE: the attribute ``size`` is missing where the bitmap is
    lost, inconsistent or not recording (libvirt 9.0; tested against a killed QEMU).
    """
    return {
        disk.get("name", ""): disk.get("size") is not None
        for disk in ET.fromstring(checkpoint_xml).iterfind("./disks/disk")
        if disk.get("checkpoint") == "bitmap"
    }


def parse_checkpoint_sources(checkpoint_xml: str) -> dict[str, str]:
    """Per disk target: the source it had when the checkpoint was made (the checkpoint keeps the domain's XML)."""
    domain = ET.fromstring(checkpoint_xml).find("./domain")
    if domain is None:
        return {}
    return {disk.target: disk.source for disk in parse_disks(ET.tostring(domain, encoding="unicode"))}


def parse_job_socket(backup_xml: str) -> str:
    """The Unix socket of a running backup job, which tells whose job it is."""
    server = ET.fromstring(backup_xml).find("./server")
    return server.get("socket", "") if server is not None else ""
