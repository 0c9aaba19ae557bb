"""What a domain is made of: its state, and the volumes that a backup must hold."""

from __future__ import annotations

import libvirt

from nasbackup import layout
from nasbackup.hypervisor import xml
from nasbackup.hypervisor.connection import Hypervisor
from nasbackup.model import Consistency, SeenVm, SkippedDisk, Vm, VmState, Volume

_STOPPED = frozenset({libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_NOSTATE})


def inspect(hypervisor: Hypervisor, *, name: str) -> Vm:
    """The domain as it is now. Raises UnknownVm, HypervisorError."""
    domain = hypervisor.domain(name=name)
    with hypervisor.doing(f"reading the definition of VM {name}"):
        return _inspect(domain)


def domain_definition(hypervisor: Hypervisor, *, name: str) -> str:
    """The XML that defines the domain at its next start: what a restore defines anew. No passwords are in it."""
    domain = hypervisor.domain(name=name)
    with hypervisor.doing(f"reading the definition of VM {name}"):
        return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def seen_vms(hypervisor: Hypervisor) -> list[SeenVm]:
    """All domains of the host, by name, but those of a drill. Raises HypervisorError."""
    with hypervisor.doing("listing VMs"):
        domains = hypervisor.connection.listAllDomains()
        found = []
        for domain in domains:
            try:
                description = xml.parse_description(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
                state = state_of(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # undefined since the list was made
                    continue
                raise
            if layout.APART in description.metadata:
                continue
            found.append(
                SeenVm(
                    name=domain.name(),
                    uuid=domain.UUIDString(),
                    host=hypervisor.host.name,
                    state=state,
                    title=description.title,
                    metadata=description.metadata,
                )
            )
    return sorted(found, key=lambda vm: vm.name)


def state_of(domain: libvirt.virDomain) -> VmState:
    state = domain.state()[0]
    if state in _STOPPED:
        return VmState.STOPPED
    return VmState.PAUSED if state == libvirt.VIR_DOMAIN_PAUSED else VmState.RUNNING


def consistency_of_stopped(domain: libvirt.virDomain) -> Consistency:
    """A guest that was shut down has closed its file systems; one that was destroyed or crashed has not."""
    state, reason = domain.state()
    clean = state == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN
    return Consistency.FILESYSTEM if clean else Consistency.CRASH


def all_targets(domain: libvirt.virDomain) -> list[str]:
    """Targets of every disk of the domain, also of those that no backup takes (libvirt wants each one named)."""
    return [disk.target for disk in xml.parse_disks(domain.XMLDesc())]


def _inspect(domain: libvirt.virDomain) -> Vm:
    volumes, skipped = [], []
    for disk in xml.parse_disks(domain.XMLDesc()):
        why = _why_not(disk, running=bool(domain.isActive()))
        if why is not None:
            unsupported = disk.device == "disk" and not disk.readonly
            skipped.append(SkippedDisk(target=disk.target, source=disk.source, why=why, unsupported=unsupported))
            continue
        capacity, allocation, _physical = domain.blockInfo(disk.target)
        volumes.append(
            Volume(
                source=disk.source,
                target=disk.target,
                format=disk.format,
                virtual_size=capacity,
                allocated=allocation,
                encrypted=disk.encrypted,
            )
        )
    return Vm(
        name=domain.name(),
        uuid=domain.UUIDString(),
        state=state_of(domain),
        volumes=tuple(volumes),
        skipped=tuple(skipped),
    )


def _why_not(disk: xml.DiskElement, *, running: bool) -> str | None:
    if disk.device != "disk":
        return f"a {disk.device} is not backed up"
    if disk.readonly:
        return "a read-only disk is not backed up"
    if disk.type == "network" and not running:
        return "a network disk can be read only while the VM runs; start it"
    if not disk.source:
        return f"disks of type {disk.type} cannot be backed up yet"
    return None
