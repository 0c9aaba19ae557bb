"""Domains that come and go: define, undefine, start, attach a disk. Each may be repeated after a crash."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import libvirt

from nasbackup.errors import RestoreRefused, UnknownPool, VmExists
from nasbackup.hypervisor import xml
from nasbackup.hypervisor.connection import Hypervisor
from nasbackup.hypervisor.new_disk import DEFAULT_BUS, bus_of, disk_xml, next_target

_HOT = frozenset({"virtio", "scsi", "usb"})
"""Buses on which libvirt brings a disk into a running VM (qemuDomainAttachDeviceDiskLive); on others it refuses."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Of a new disk. ``live``: in the running VM as well as in its definition.

    ``waits``: the VM runs, and gets it when it was shut down and started again.
    """

    target: str
    bus: str
    live: bool
    waits: bool


@dataclass(frozen=True, kw_only=True)
class Attached(Place):
    """The disk is there."""


def require_free(hypervisor: Hypervisor, *, name: str, uuid: str) -> None:
    """Raises VmExists when another domain than the one with this UUID has the name."""
    with hypervisor.doing("looking up a VM"):
        for domain in hypervisor.connection.listAllDomains():
            if domain.name() == name and domain.UUIDString() != uuid:
                raise VmExists(host=hypervisor.host.name, vm=name, uuid=domain.UUIDString())


def define(hypervisor: Hypervisor, *, definition: str, name: str, uuid: str) -> libvirt.virDomain:
    """Define the domain; one with this name and UUID is there from an earlier try. Raises VmExists, HypervisorError."""
    found = hypervisor.domain_by_uuid(uuid)
    if found is not None:
        if found.name() != name:
            raise VmExists(host=hypervisor.host.name, vm=found.name(), uuid=uuid)
        return found
    require_free(hypervisor, name=name, uuid=uuid)
    with hypervisor.doing(f"defining VM {name}"):
        return hypervisor.connection.defineXML(definition)


def undefine(hypervisor: Hypervisor, *, uuid: str, keep_state: bool = False) -> bool:
    """End and undefine the domain with all that libvirt keeps of it; False when there is none. Its disks stay.

    ``keep_state``: its UEFI variables and the state of its TPM stay too.
    """
    domain = hypervisor.domain_by_uuid(uuid)
    if domain is None:
        return False
    with hypervisor.doing(f"removing VM {domain.name()}"):
        if domain.isActive():
            domain.destroy()
        if keep_state:
            state = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
        else:
            state = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM
        if hypervisor.domain_by_uuid(uuid) is not None:  # a transient one is gone when it has ended
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | state
            )
    return True


def start(hypervisor: Hypervisor, *, uuid: str, name: str, paused: bool = False) -> None:
    """Start it, unless it runs already. Raises HypervisorError."""
    with hypervisor.doing(f"starting VM {name}"):
        domain = hypervisor.connection.lookupByUUIDString(uuid)
        if not domain.isActive():
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)


def place_for(hypervisor: Hypervisor, *, domain: libvirt.virDomain) -> Place:
    """Where ``attach`` would put a new disk now. Raises RestoreRefused, NoFreeTarget, HypervisorError."""
    with hypervisor.doing(f"looking for a place in VM {domain.name()}"):
        return _place(domain, _definitions(domain))


def attach(hypervisor: Hypervisor, *, domain: libvirt.virDomain, file: Path, image_format: str) -> Attached:
    """The image as a new disk at the next free target of the bus that the VM's disks have.

    In the definition, and in the VM if it runs and its bus takes disks then. A disk of this file is there from an
    earlier try: in what lacks it, it is completed. Raises RestoreRefused, NoFreeTarget, HypervisorError.
    """
    with hypervisor.doing(f"attaching {file} to VM {domain.name()}"):
        definitions = _definitions(domain)
        known = {flag: _target_of(document, file=str(file)) for flag, document in definitions.items()}
        place = _place(domain, definitions, there=known)
        if place.waits:
            known.pop(libvirt.VIR_DOMAIN_AFFECT_LIVE)
        flags = sum(flag for flag, found in known.items() if found is None)
        if flags:
            disk = disk_xml(file=str(file), image_format=image_format, target=place.target, bus=place.bus)
            domain.attachDeviceFlags(disk, flags)
    return Attached(target=place.target, bus=place.bus, live=place.live, waits=place.waits)


def _definitions(domain: libvirt.virDomain) -> dict[int, str]:
    """By the flag that says which is meant: the domain at its next start, and as it runs."""
    found = {}
    if domain.isPersistent():
        found[libvirt.VIR_DOMAIN_AFFECT_CONFIG] = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    if domain.isActive():
        found[libvirt.VIR_DOMAIN_AFFECT_LIVE] = domain.XMLDesc()
    return found


def _place(
    domain: libvirt.virDomain, definitions: Mapping[int, str], *, there: Mapping[int, str | None] | None = None
) -> Place:
    """``there``: the targets at which the disk is already, in the definition and in the VM."""
    known = there or {}
    target = next(filter(None, known.values()), None)
    documents = list(definitions.values())
    bus = next((found for document in documents if (found := bus_of(document, target=target))), DEFAULT_BUS)
    active = libvirt.VIR_DOMAIN_AFFECT_LIVE in definitions
    waits = active and bus not in _HOT and known.get(libvirt.VIR_DOMAIN_AFFECT_LIVE) is None
    if waits and libvirt.VIR_DOMAIN_AFFECT_CONFIG not in definitions:
        raise RestoreRefused(
            vm=domain.name(),
            why=f"its disks are on bus {bus}, on which a VM that runs takes no other, and it has no definition for a "
            "next start: restore to images",
        )
    target = target or next_target(documents, bus=bus, vm=domain.name())
    return Place(target=target, bus=bus, live=active and not waits, waits=waits)


def pool_directory(hypervisor: Hypervisor, *, pool: str) -> Path:
    """Where a storage pool that is a directory has its files. Raises UnknownPool."""
    with hypervisor.doing("listing storage pools"):
        pools = {found.name(): found for found in hypervisor.connection.listAllStoragePools()}
        known = ", ".join(sorted(pools)) or "none"
        if pool not in pools:
            raise UnknownPool(host=hypervisor.host.name, pool=pool, problem="does not exist", known=known)
        description = ET.fromstring(pools[pool].XMLDesc())
        if not pools[pool].isActive():
            raise UnknownPool(host=hypervisor.host.name, pool=pool, problem="is not started", known=known)
    path = description.findtext("target/path")
    if description.get("type") not in ("dir", "fs", "netfs") or not path:
        raise UnknownPool(host=hypervisor.host.name, pool=pool, problem="has no directory for image files", known=known)
    return Path(path)


def refresh_pool(hypervisor: Hypervisor, *, pool: str) -> None:
    """Have libvirt see files that were written without it."""
    with hypervisor.doing(f"refreshing storage pool {pool}"):
        hypervisor.connection.storagePoolLookupByName(pool).refresh(0)


def _target_of(domain_xml: str, *, file: str) -> str | None:
    return next((disk.target for disk in xml.parse_disks(domain_xml) if disk.source == file), None)
