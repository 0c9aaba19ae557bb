"""From verdicts to what is to be deleted, chain by chain: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nasbackup.model import BackupStatus
from nasbackup.retention.verdicts import RestorePoint, Verdict


@dataclass(frozen=True, kw_only=True)
class ChainPlan:
    """What is to be deleted of one chain. ``chain``: the external id of its full."""

    chain: str
    delete: tuple[tuple[str, str], ...]
    """(external id, why), leaf first. What was asked for before is in it only if nothing else makes it go on."""
    pending: tuple[str, ...]
    """Those of ``delete`` that stay, delete-pending, because a child of theirs is kept."""
    restorable: int
    """How many of ``delete`` somebody could restore now, and could not afterwards."""
    falls: int
    """Backups that go, with those that have been waiting for one of these."""
    size: int
    """Bytes of those that go, as the catalog knows them."""


def chain_plans(verdicts: Sequence[Verdict]) -> Iterator[ChainPlan]:
    """One for each chain of which something goes. ``verdicts``: of one VM in one repository, the oldest first."""
    if all(verdict.keep for verdict in verdicts):
        return
    root: dict[int, str] = {}
    children: dict[int, list[RestorePoint]] = {}
    chains: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        point = verdict.point
        parent = point.parent_id
        root[point.backup_id] = root.get(parent, point.external_id) if parent is not None else point.external_id
        if parent is not None and not point.is_clean:
            children.setdefault(parent, []).append(point)
        chains.setdefault(root[point.backup_id], []).append(verdict)
    for chain, members in chains.items():
        plan = _chain_plan(chain, members, children=children)
        if plan is not None:
            yield plan


def _chain_plan(chain: str, members: Sequence[Verdict], *, children: dict[int, list[RestorePoint]]) -> ChainPlan | None:
    goes: dict[int, bool] = {}
    delete, pending, size, falls, restorable = [], [], 0, 0, 0
    for point, keep, rule in reversed(members):
        falling = not keep and all(goes[child.backup_id] for child in children.get(point.backup_id, ()))
        goes[point.backup_id] = falling
        asked_before = point.status in (BackupStatus.DELETE_PENDING, BackupStatus.DELETING)
        if falling:
            falls += 1
            size += point.size
        # One that was asked for before falls with its last child, if that is asked for now; otherwise it needs a push.
        if not keep and not (asked_before and (not falling or children.get(point.backup_id))):
            delete.append((point.external_id, rule))
            restorable += point.status == BackupStatus.BACKED_UP
            if not falling:
                pending.append(point.external_id)
    if not delete:
        return None
    return ChainPlan(
        chain=chain, delete=tuple(delete), pending=tuple(pending), restorable=restorable, falls=falls, size=size
    )
