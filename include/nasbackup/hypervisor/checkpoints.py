"""Checkpoints of a domain: which bitmaps are usable, and dropping those that nothing needs.

A checkpoint is one dirty bitmap per disk; libvirt keeps every bitmap independent of the others, so one can be
deleted without touching the rest.
"""

from __future__ import annotations

from collections.abc import Collection

import libvirt

from nasbackup.hypervisor import xml
from nasbackup.hypervisor.connection import Hypervisor


def names(domain: libvirt.virDomain) -> frozenset[str]:
    return frozenset(checkpoint.getName() for checkpoint in domain.listAllCheckpoints())


def usable_bitmaps(hypervisor: Hypervisor, *, vm: str, checkpoint: str) -> dict[str, bool]:
    """Per volume source: whether the checkpoint's bitmap is there and consistent in the running domain.

    A source that the checkpoint does not cover, or covered at another target, is missing in the answer.
    """
    domain = hypervisor.domain(name=vm)
    with hypervisor.doing(f"reading checkpoint {checkpoint} of VM {vm}"):
        if checkpoint not in names(domain):
            return {}
        found = domain.checkpointLookupByName(checkpoint)
        sizes = xml.parse_checkpoint_sizes(found.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE))
        before = xml.parse_checkpoint_sources(found.getXMLDesc())
        now = {disk.target: disk.source for disk in xml.parse_disks(domain.XMLDesc())}
    return {
        now[target]: usable for target, usable in sizes.items() if target in now and before.get(target) == now[target]
    }


def drop(hypervisor: Hypervisor, *, vm_uuid: str, unneeded: Collection[str]) -> list[str]:
    """Delete those of ``unneeded`` that the domain has, bitmaps included; returns their names.

    A checkpoint whose bitmap is lost (QEMU was killed before it wrote it) cannot be deleted the usual way: then
    its metadata goes alone, there is nothing else left of it. A stopped domain keeps its checkpoints until it
    runs again: libvirt cannot delete bitmaps of an inactive domain.
    """
    domain = hypervisor.domain_by_uuid(vm_uuid)
    if domain is None:
        return []
    dropped = []
    with hypervisor.doing(f"dropping checkpoints of VM {domain.name()}"):
        for name in sorted(names(domain) & set(unneeded)):
            if not domain.isActive():
                continue
            checkpoint = domain.checkpointLookupByName(name)
            try:
                checkpoint.delete()
            except libvirt.libvirtError:
                if any(_bitmap_sizes(checkpoint).values()):
                    raise
                checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            dropped.append(name)
    return dropped


def _bitmap_sizes(checkpoint: libvirt.virDomainCheckpoint) -> dict[str, bool]:
    return xml.parse_checkpoint_sizes(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE))
