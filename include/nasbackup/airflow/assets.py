"""A recorded backup as an event of an asset: other DAGs can be scheduled by it.

``nas_backup`` has an event for every backup of every VM; ``nas_backup/<uuid>`` for those of one VM, added through the
alias ``nas_backup_of_vm``, since which VMs there are is not known to the DAG file. Each event carries the facts,
with which the backup is found on the NAS without the catalog (docs/fleet.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset, AssetAlias

BACKUPS = Asset(name="nas_backup", uri="nasbackup://backups", group="nas-backup")
OF_VM = AssetAlias(name="nas_backup_of_vm", group="nas-backup")


def vm_asset(vm_uuid: str) -> Asset:
    """By UUID: a VM's name may change, and hold what no asset's may."""
    return Asset(name=f"nas_backup/{vm_uuid}", uri=f"nasbackup://backups/{vm_uuid}", group="nas-backup")


def emit(outlet_events: Any, *, recorded: Mapping[str, Any], vm_uuid: str) -> None:
    """``outlet_events`` of the context of a task whose outlets are BACKUPS and OF_VM."""
    facts = {
        "vm": recorded["vm"],
        "vm_uuid": vm_uuid,
        "host": recorded["host"],
        "repository": recorded["repository"],
        "external_id": recorded["external_id"],
        "type": recorded["type"],
        "reason": recorded["reason"],
        "size": recorded["size"],
        "consistency": recorded["consistency"],
        "chain_id": recorded["chain_id"],
        "chain_position": recorded["chain_position"],
        "parent": recorded["parent"],
        "bytes_read": sum(volume["bytes_read"] or 0 for volume in recorded["volumes"]),
        "volumes": len(recorded["volumes"]),
    }
    outlet_events[BACKUPS].extra = facts
    outlet_events[OF_VM].add(vm_asset(vm_uuid), extra=facts)
