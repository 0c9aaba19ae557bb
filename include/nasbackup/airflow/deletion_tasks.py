"""Bodies of the tasks of ``nas_retention`` that delete."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from nasbackup import fleet, layout
from nasbackup.airflow import hooks
from nasbackup.airflow.retention_tasks import defined_vms, rules_of
from nasbackup.catalog import Database, backups, deletions
from nasbackup.errors import (
    BackupNotDeletable,
    DeletionFailed,
    HypervisorError,
    LeaseLost,
    NasBackupError,
    NasError,
    RequestError,
    VmBusy,
)
from nasbackup.hypervisor import connect
from nasbackup.model import BackupStatus
from nasbackup.steps import retention
from nasbackup.steps.bitmaps import drop_unneeded
from nasbackup.steps.delete import Deletion, each_deleted, list_files
from nasbackup.steps.lease import held_lease
from nasbackup.steps.retention import Defined
from nasbackup.steps.ticket import Store

log = logging.getLogger(__name__)

Payload = dict[str, Any]


def delete_of_vm(*, work: Payload, params: Mapping[str, Any], run_id: str) -> Payload:
    """Delete what is still unwanted of one VM, chain by chain. A VM that is busy is left for the next run.

    A repository that is away, or known to nobody any more, keeps no chain elsewhere. Its error is raised, and Airflow
    tries again, where nothing is lost by that; once something is gone the result says so, which a second try could not
    say again, and beside it what failed (``require_nothing_failed``). The next run goes on with the rest.
    """
    database = hooks.catalog()
    holder = f"nas_retention/{run_id}"
    # Hours may have gone by, somebody may have been asked: what a rule keeps by now stays. (Named ones have no policy.)
    judged = any(chain["policy"] for chain in work["chains"])
    unwanted = _still_unwanted(database, work=work, params=params) if judged else None
    tried = [_delete_chain(database, chain=chain, unwanted=unwanted, holder=holder) for chain in work["chains"]]
    if any(attempt.was_active for attempt in tried):
        _drop_bitmap(database, work=work, holder=holder)
    failed = [attempt.error for attempt in tried if attempt.error is not None]
    if failed and not any(attempt.result["removed"] for attempt in tried):
        raise next((error for error in failed if error.retryable), failed[0])
    return {"vm": work["vm"], "chains": [attempt.result for attempt in tried]}


def require_nothing_failed(*, deleted: Sequence[Payload]) -> None:
    """Raises DeletionFailed, when some chain could not be gone through to its end."""
    failed = [chain for work in deleted for chain in work["chains"] if chain["failed"]]
    if failed:
        raise DeletionFailed(count=len(failed), chain=failed[0]["chain"], why=failed[0]["failed"])


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """What was done to a chain, and what came in between."""

    result: Payload
    was_active: bool
    error: NasBackupError | None


def _delete_chain(database: Database, *, chain: Payload, unwanted: Set[str] | None, holder: str) -> _Attempt:
    """``unwanted``: external ids that no rule keeps; None: nobody asks the rules."""
    asked = [external_id for external_id, _ in chain["delete"]]
    wanted = asked if unwanted is None else [name for name in asked if name in unwanted]
    instance = layout.instance_of(chain["chain"])
    before: list[str] | None = None
    after: list[str] | None = None
    done: list[Deletion] = []
    refused: dict[str, str] = {}
    error: NasBackupError | None = None
    try:
        store = Store(database=database, repository=hooks.NasHook(nas_conn_id=chain["repository"]).get_conn())
        before = list_files(store, vm=instance)
        try:
            for outcome in each_deleted(store, external_ids=wanted, holder=holder):
                if isinstance(outcome, BackupNotDeletable):
                    refused[outcome.backup] = str(outcome)
                else:
                    done.append(outcome)
        except VmBusy as busy:
            refused |= dict.fromkeys(wanted, str(busy))
        after = list_files(store, vm=instance)
    except (NasError, RequestError, LeaseLost) as caught:
        log.error("Chain %s in %s is left: %s", chain["chain"], chain["repository"], caught)
        error = caught
        settled = {*refused, *(deletion.external_id for deletion in done)}
        refused |= {name: str(caught) for name in wanted if name not in settled}
    for name, why in refused.items():
        log.warning("%s is left: %s", name, why)
    removed = [removal for deletion in done for removal in deletion.removed]
    settled = {*wanted, *(removal.external_id for removal in removed)}
    pending, why_left = _not_asked_for_again(database, names=[name for name in asked if name not in settled])
    result = {
        "chain": chain["chain"],
        "repository": chain["repository"],
        "removed": [asdict(removal) for removal in removed],
        "delete_pending": [
            *({"external_id": found.external_id, "kept_by": found.kept_by} for found in done if found.kept_by),
            *pending,
        ],
        "left": [*({"external_id": name, "why": why} for name, why in refused.items()), *why_left],
        "failed": "" if error is None else str(error),
        "bytes_freed": sum(deletion.bytes_freed for deletion in done),
        "files_before": before,
        "files_after": after,
    }
    return _Attempt(result=result, was_active=any(deletion.was_active for deletion in done), error=error)


def _not_asked_for_again(database: Database, *, names: Sequence[str]) -> tuple[list[Payload], list[Payload]]:
    """What became of those that nobody has to delete any more: delete-pending by an earlier try, or left, and why."""
    pending: list[Payload] = []
    left: list[Payload] = []
    with database.transaction() as cursor:
        for name in names:
            found = backups.find_or_none(cursor, external_id=name)
            if found is None:
                left.append({"external_id": name, "why": "gone already: an earlier try deleted it"})
            elif found.status in (BackupStatus.DELETE_PENDING, BackupStatus.DELETING):
                kept_by = deletions.kept_by(cursor, backup_id=found.backup_id)
                pending.append({"external_id": name, "kept_by": kept_by})
            else:
                left.append({"external_id": name, "why": "a rule keeps it by now"})
    return pending, left


def _still_unwanted(database: Database, *, work: Payload, params: Mapping[str, Any]) -> set[str]:
    """In all repositories: an external id names one backup of the whole catalog."""
    known = fleet.load()
    found = retention.report(
        database,
        fleet=known,
        now=datetime.now(UTC),
        defined=_where(known.hosts, vm_uuid=work["vm_uuid"], host=work["host"]),
        vm_uuid=work["vm_uuid"],
        rules=rules_of(params),
    )
    return {external_id for doomed in found.chains for external_id, _ in doomed.plan.delete}


def _where(hosts: Sequence[str], *, vm_uuid: str, host: str) -> Defined:
    """Its own host is asked first, and mostly that is all: one that hangs holds up the VMs that may be there alone."""
    own = defined_vms([name for name in hosts if name == host])
    if any(uuids is not None and vm_uuid in uuids for uuids in own.values()):
        return own
    return {**own, **defined_vms([name for name in hosts if name != host])}


def _drop_bitmap(database: Database, *, work: Payload, holder: str) -> None:
    """It is of no use any more. A host that is away is no reason to fail: nas_reconcile drops it."""
    try:
        host = hooks.LibvirtHook(libvirt_conn_id=work["host"]).get_conn()
        with (
            held_lease(database, vm_uuid=work["vm_uuid"], vm=work["vm"], holder=holder),
            connect(host) as hypervisor,
        ):
            drop_unneeded(database, hypervisor, vm_uuid=work["vm_uuid"])
    except (HypervisorError, RequestError, VmBusy) as error:
        log.warning("The bitmap of %s is left to nas_reconcile: %s", work["vm"], error)
