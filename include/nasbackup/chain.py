"""decide_chain: what the next backup of a VM will be, and why. A pure function of what is known.

The table and its order follow the review of CloudStack's NAS backup provider (PR #13074): first match wins.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nasbackup import layout
from nasbackup.model import (
    BackupType,
    ChainDecision,
    Mode,
    Reason,
    Vm,
    VmState,
    Volume,
    VolumePlan,
    VolumeReason,
)
from nasbackup.past import PastBackup, PastVolume
from nasbackup.settings import Settings


def can_have_bitmap(*, image_format: str, source: str) -> bool:
    """Only a local qcow2 image keeps a dirty bitmap; other volumes are full every time.

    (libvirt's knowledge base, "Incremental backup internals"; ``<dataStore>`` for raw needs libvirt 10.10.)
    """
    return image_format == "qcow2" and source.startswith("/")


@dataclass(frozen=True, kw_only=True)
class ChainState:
    """All that the decision depends on.

    ``latest`` is the newest BackedUp backup of this VM in this repository; ``usable_bitmaps`` says per volume
    source whether its bitmap of the active checkpoint is there and consistent.
    """

    vm: Vm
    mode: Mode
    settings: Settings
    active_checkpoint: str | None = None
    latest: PastBackup | None = None
    usable_bitmaps: Mapping[str, bool] = field(default_factory=dict)


def decide_chain(state: ChainState, *, new_checkpoint: str, new_chain_id: str) -> ChainDecision:
    """The decision table, row by row. ``new_checkpoint`` and ``new_chain_id`` are used where a row asks for one."""
    full = _Full(state=state, checkpoint=new_checkpoint, chain_id=new_chain_id)
    settings, latest = state.settings, state.latest

    if not settings.incremental_enabled:
        return full.outside_chains(
            Reason.INCREMENTAL_DISABLED, "incremental backups are switched off: a full without checkpoint or chain"
        )
    if state.mode is Mode.FULL:
        return full.of_new_chain(Reason.FORCED_FULL, "the operator asked for a full")
    if state.vm.state is VmState.STOPPED and not settings.stopped_incremental_enabled:
        return full.of_new_chain(Reason.VM_STOPPED, "the VM is stopped: a full that seeds the bitmap")
    if settings.full_every <= 1:
        return full.of_new_chain(
            Reason.FULL_EVERY_DISABLED, f"every backup is full (full.every = {settings.full_every})"
        )
    if state.active_checkpoint is None:
        return full.of_new_chain(
            Reason.NO_ACTIVE_CHECKPOINT, "there is no active checkpoint in this repository: the chain starts here"
        )
    if latest is None or latest.checkpoint != state.active_checkpoint:
        return full.of_new_chain(
            Reason.LATEST_BACKUP_MISMATCH,
            f"the latest backup belongs to {latest.checkpoint if latest else 'no checkpoint'},"
            f" the active checkpoint is {state.active_checkpoint}",
        )
    if latest.chain_position + 1 >= settings.full_every:
        return full.of_new_chain(
            Reason.CHAIN_COMPLETE,
            f"the chain is complete: {latest.chain_position + 1} of {settings.full_every} (full.every)",
        )
    instance = layout.instance_of(latest.external_id)
    if instance != layout.safe_component(state.vm.name):
        # Layers refer to each other as ../<time>/<file>: a chain lies in one directory.
        return full.of_new_chain(
            Reason.VM_RENAMED, f"the VM is called {state.vm.name} now, and its chain lies below {instance}"
        )
    plans = _plan_volumes(state, parent=latest)
    incremental = [plan for plan in plans if plan.type is BackupType.INCREMENTAL]
    if not incremental:
        return full.of_new_chain(
            Reason.BITMAP_UNUSABLE, f"no volume can use its bitmap of {state.active_checkpoint} ({_exceptions(plans)})"
        )
    explanation = f"incremental on {latest.external_id}, position {latest.chain_position + 1}"
    if len(incremental) < len(plans):
        explanation += f"; full inside it: {_exceptions(plans)}"
    return ChainDecision(
        vm_state=state.vm.state,
        type=BackupType.INCREMENTAL,
        reason=Reason.INCREMENTAL,
        explanation=explanation,
        checkpoint=new_checkpoint,
        base_checkpoint=state.active_checkpoint,
        chain_id=latest.chain_id,
        chain_position=latest.chain_position + 1,
        parent_id=latest.backup_id,
        parent=latest.external_id,
        volumes=plans,
    )


@dataclass(frozen=True, kw_only=True)
class _Full:
    """The two kinds of full backup."""

    state: ChainState
    checkpoint: str
    chain_id: str

    def of_new_chain(self, reason: Reason, why: str) -> ChainDecision:
        can_have_bitmaps = any(
            can_have_bitmap(image_format=volume.format, source=volume.source) for volume in self.state.vm.volumes
        )
        return self._decision(
            reason, why, checkpoint=self.checkpoint if can_have_bitmaps else None, chain_id=self.chain_id
        )

    def outside_chains(self, reason: Reason, why: str) -> ChainDecision:
        return self._decision(reason, why, checkpoint=None, chain_id=None)

    def _decision(self, reason: Reason, why: str, *, checkpoint: str | None, chain_id: str | None) -> ChainDecision:
        return ChainDecision(
            vm_state=self.state.vm.state,
            type=BackupType.FULL,
            reason=reason,
            explanation=f"full: {why}",
            checkpoint=checkpoint,
            base_checkpoint=None,
            chain_id=chain_id,
            chain_position=0,
            parent_id=None,
            parent=None,
            volumes=_plan_volumes(self.state, parent=None),
        )


def _plan_volumes(state: ChainState, *, parent: PastBackup | None) -> tuple[VolumePlan, ...]:
    names = layout.volume_names(state.vm.volumes)
    before = {volume.source: volume for volume in parent.volumes} if parent else {}
    plans = []
    for index, volume in enumerate(state.vm.volumes):
        on = before.get(volume.source)
        reason = _volume_reason(volume, on=on, state=state) if parent else VolumeReason.FULL_BACKUP
        incremental = reason is VolumeReason.INCREMENTAL
        plans.append(
            VolumePlan(
                name=names[volume.source],
                source=volume.source,
                target=volume.target,
                format=volume.format,
                file=layout.volume_file(name=names[volume.source], is_root=index == 0),
                virtual_size=volume.virtual_size,
                type=BackupType.INCREMENTAL if incremental else BackupType.FULL,
                reason=reason,
                backing=os.path.join("..", parent.directory, on.file) if incremental and parent and on else None,
            )
        )
    return tuple(plans)


def _volume_reason(volume: Volume, *, on: PastVolume | None, state: ChainState) -> VolumeReason:
    if not can_have_bitmap(image_format=volume.format, source=volume.source):
        return VolumeReason.NO_BITMAP_POSSIBLE
    if on is None:
        return VolumeReason.NEW_VOLUME
    if on.virtual_size != volume.virtual_size:
        return VolumeReason.RESIZED
    if not state.usable_bitmaps.get(volume.source, False):
        return VolumeReason.BITMAP_UNUSABLE
    return VolumeReason.INCREMENTAL


def _exceptions(plans: Sequence[VolumePlan]) -> str:
    return ", ".join(f"{plan.name}: {plan.reason}" for plan in plans if plan.type is BackupType.FULL)
