"""Checkpoints of a domain: which bitmaps are usable, and dropping those that nothing needs.

A checkpoint is one dirty bitmap per disk; libvirt keeps every bitmap independent of the others, so one can be
deleted without touching the rest. The truth is in the images: libvirt's own list is lost when a domain is
undefined, migrated or transient, and is then made anew ("redefine").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import libvirt

from nasbackup.hypervisor import inventory, offline, xml
from nasbackup.hypervisor.connection import Hypervisor

Sources = Mapping[str, str]
"""Disk target -> source path, of the qcow2 disks."""


def names(domain: libvirt.virDomain) -> frozenset[str]:
    return frozenset(checkpoint.getName() for checkpoint in domain.listAllCheckpoints())


def present(hypervisor: Hypervisor, *, domain: libvirt.virDomain) -> frozenset[str]:
    """Names of all checkpoints that libvirt knows, and of all bitmaps that are stored in the VM's images."""
    with hypervisor.doing(f"reading checkpoints of VM {domain.name()}"):
        stored = [offline.bitmaps(Path(source)) for source in _qcow2_sources(domain).values()]
        return names(domain).union(*stored)


def define(hypervisor: Hypervisor, *, domain: libvirt.virDomain, name: str, targets: Collection[str]) -> None:
    """Tell libvirt of bitmaps of this name that these disks have already."""
    with hypervisor.doing(f"redefining checkpoint {name} of VM {domain.name()}"):
        domain.checkpointCreateXML(
            xml.redefine_xml(name=name, targets=sorted(targets), all_targets=inventory.all_targets(domain)),
            libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE,
        )


def usable_bitmaps(hypervisor: Hypervisor, *, vm: str, checkpoint: str, covered: Collection[str]) -> dict[str, bool]:
    """Per volume source: whether the checkpoint's bitmap is there and consistent. Other sources are not in the answer.

    ``covered``: sources of the backup that the checkpoint belongs to. Where libvirt has lost the checkpoint and
    the images still have its bitmaps, it is told again.
    """
    domain = hypervisor.domain(name=vm)
    with hypervisor.doing(f"reading the disks of VM {vm}"):
        sources = {target: source for target, source in _qcow2_sources(domain).items() if source in covered}
        if not domain.isActive():
            return {source: offline.bitmaps(Path(source)).get(checkpoint, False) for source in sources.values()}
        redefined = checkpoint not in names(domain)
        if redefined and sources:
            # QEMU may have the bitmaps, in memory only or from the images: whether it does, their sizes tell.
            define(hypervisor, domain=domain, name=checkpoint, targets=sources)
        elif redefined:
            return {}
        found = domain.checkpointLookupByName(checkpoint)
        sizes = xml.parse_checkpoint_sizes(found.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE))
        before = xml.parse_checkpoint_sources(found.getXMLDesc())
        if redefined and not any(sizes.values()):
            found.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    return {
        sources[target]: usable and before.get(target, sources[target]) == sources[target]
        for target, usable in sizes.items()
        if target in sources
    }


def drop(
    hypervisor: Hypervisor, *, vm_uuid: str, unneeded: Collection[str], perhaps_unknown: bool = False
) -> list[str]:
    """Delete those of ``unneeded`` that the domain has, bitmaps included; returns their names.

    Also the broken ones, and those of which only the bitmaps or only libvirt's metadata are left. ``perhaps_unknown``:
    a running QEMU may have them in its memory alone, where only an attempt shows them (libvirt lost its metadata).
    """
    domain = hypervisor.domain_by_uuid(vm_uuid)
    if domain is None or not unneeded:
        return []
    with hypervisor.doing(f"dropping checkpoints of VM {domain.name()}"):
        sources = _qcow2_sources(domain)
        stored = {target: offline.bitmaps(Path(source)) for target, source in sources.items()}
        known = names(domain)
        dropped = []
        for name in sorted(unneeded):
            targets = [target for target, bitmaps in stored.items() if name in bitmaps]
            if name not in known and not targets:
                if not (perhaps_unknown and domain.isActive()):
                    continue
                targets = list(sources)
            if domain.isActive():
                _delete_running(hypervisor, domain=domain, name=name, stored=targets)
            else:
                for target in targets:
                    offline.remove_bitmap(Path(sources[target]), name=name, vm=domain.name())
                if name in known:
                    domain.checkpointLookupByName(name).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            dropped.append(name)
    return dropped


def _delete_running(hypervisor: Hypervisor, *, domain: libvirt.virDomain, name: str, stored: Collection[str]) -> None:
    """libvirt deletes a checkpoint only as a whole: when one disk's bitmap is lost, it is first told which are left."""
    known = name in names(domain)
    if known:
        try:
            domain.checkpointLookupByName(name).delete()
            return
        except libvirt.libvirtError:
            # A bitmap that was made in a QEMU that was killed was never stored: it is in no image.
            sizes = xml.parse_checkpoint_sizes(
                domain.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE)
            )
            left = {target for target, usable in sizes.items() if usable} | set(stored)
            domain.checkpointLookupByName(name).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    else:
        left = set(stored)
    for target in sorted(left):
        # One disk at a time: a bitmap that is gone after all costs only its own attempt.
        define(hypervisor, domain=domain, name=name, targets=[target])
        checkpoint = domain.checkpointLookupByName(name)
        try:
            checkpoint.delete()
        except libvirt.libvirtError:
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _qcow2_sources(domain: libvirt.virDomain) -> dict[str, str]:
    disks = xml.parse_disks(domain.XMLDesc())
    return {
        disk.target: disk.source
        for disk in disks
        if disk.format == "qcow2" and disk.source and disk.device == "disk" and Path(disk.source).exists()
    }
