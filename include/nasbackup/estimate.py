"""How many bytes a backup will need, before anything is begun: pure arithmetic on what earlier backups needed.

An estimate may be wrong in both directions. Too high refuses a backup that would have fitted, and does so every
time, so where an upper bound is known it is used; too low is found out during the copy, which then fails with
nothing published and the chain as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nasbackup.model import BackupType, VolumePlan
from nasbackup.past import PastBackup

MIB = 1 << 20
CLUSTER = 64 * 1024

FIXED = MIB
"""Header, first-level table and the like of one layer, the directory, domain.xml and the manifest."""

PER_CLUSTER = 10
"""Bytes of qcow2 metadata per cluster of data: 8 in the second-level table, 2 in the reference counts."""

LAST = 3
"""This many increments back tell how large the next may be: a weekend's must not hide a weekday's."""

MARGIN = 1.5
"""No increment is like the one before."""

UNKNOWN_SHARE = 0.1
"""Of a volume without increments, this much of what it holds is guessed to change until the next backup."""

SCRATCH_AT_LEAST = 64 * MIB
"""Per volume: what a guest overwrites in the minutes of a copy, when its history says next to nothing."""


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """What one earlier backup of a volume was: ``bytes_read`` from the VM, ``bytes_written`` on the NAS."""

    type: BackupType
    bytes_read: int
    bytes_written: int


History = Mapping[str, Sequence[LayerSize]]
"""A volume's source -> its layers in this repository, the newest first, so far back that it ``is_enough``, or all."""


def layers_of(recent: Sequence[PastBackup]) -> History:
    """``recent``: backups of one VM in one repository, the newest first."""
    found: dict[str, list[LayerSize]] = {}
    for volume in (volume for backup in recent for volume in backup.volumes):
        if volume.bytes_read is not None and volume.bytes_written is not None:
            found.setdefault(volume.source, []).append(
                LayerSize(type=volume.type, bytes_read=volume.bytes_read, bytes_written=volume.bytes_written)
            )
    return found


def are_enough(plans: Sequence[VolumePlan], *, history: History) -> bool:
    """Whether layers older than these would change nothing in what is estimated for these volumes."""
    return all(is_enough(plan, layers=history.get(plan.source, ())) for plan in plans)


def is_enough(plan: VolumePlan, *, layers: Sequence[LayerSize]) -> bool:
    """Whether layers older than these would change nothing in what is estimated for this volume."""
    is_based = plan.type is BackupType.INCREMENTAL or bool(_last_chain(layers))
    return is_based and len(_increments(layers)) >= LAST


def nas_bytes(plans: Sequence[VolumePlan], *, allocated: Mapping[str, int], history: History) -> int:
    """What all layers of the coming backup will occupy on the NAS. ``allocated``: source -> bytes in the VM's image."""
    return sum(
        layer_bytes(plan, allocated=allocated.get(plan.source, plan.virtual_size), layers=history.get(plan.source, ()))
        for plan in plans
    )


def scratch_bytes(plans: Sequence[VolumePlan], *, allocated: Mapping[str, int], history: History) -> int:
    """What the guest may overwrite while it is copied: the old content is kept on the host until the job ends.

    A copy takes a small part of the time between two backups, so what changed between two is a generous bound.
    """
    total = 0
    for plan in plans:
        holds = min(allocated.get(plan.source, plan.virtual_size), plan.virtual_size)
        changes = _changes([layer.bytes_read for layer in _increments(history.get(plan.source, ()))], holds=holds)
        total += min(max(changes, SCRATCH_AT_LEAST), plan.virtual_size)
    return total


def layer_bytes(plan: VolumePlan, *, allocated: int, layers: Sequence[LayerSize]) -> int:
    """What the coming layer of one volume will occupy on the NAS."""
    holds = min(allocated, plan.virtual_size)
    changes = _changes([layer.bytes_written for layer in _increments(layers)], holds=holds)
    if plan.type is BackupType.INCREMENTAL:
        return with_metadata(min(changes, plan.virtual_size))
    # A preallocated image is "allocated" to its end and may still be empty, but then its last full layer was small;
    # everything that came on top of that layer is in the increments.
    chain = _last_chain(layers)
    known = sum(layer.bytes_written for layer in chain) + changes if chain else holds
    return with_metadata(min(holds, known))


def with_metadata(data: int) -> int:
    """A layer with so many bytes of data, and what qcow2 needs to find them."""
    clusters = -(-data // CLUSTER)
    return clusters * (CLUSTER + PER_CLUSTER) + FIXED


def _changes(sizes: Sequence[int], *, holds: int) -> int:
    recent = sizes[:LAST]
    return int(max(recent) * MARGIN) if recent else int(holds * UNKNOWN_SHARE)


def _increments(layers: Sequence[LayerSize]) -> list[LayerSize]:
    return [layer for layer in layers if layer.type is BackupType.INCREMENTAL]


def _last_chain(layers: Sequence[LayerSize]) -> Sequence[LayerSize]:
    """The newest full layer and what is on top of it; empty when no full layer is known."""
    for index, layer in enumerate(layers):
        if layer.type is BackupType.FULL:
            return layers[: index + 1]
    return ()
