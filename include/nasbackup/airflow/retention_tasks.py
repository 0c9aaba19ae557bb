"""Bodies of the tasks of ``nas_retention``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from nasbackup import fleet
from nasbackup.airflow import hooks, mapped
from nasbackup.airflow.forms import require_known_keys, retention_params
from nasbackup.catalog import Database, backups, capacity
from nasbackup.errors import (
    BackupNotDeletable,
    HypervisorError,
    NasBackupError,
    RepositoryFilling,
    RequestError,
    VmBusy,
)
from nasbackup.fleet import Fleet
from nasbackup.hypervisor import connect
from nasbackup.model import BackupStatus
from nasbackup.retention.capacity import forecast
from nasbackup.retention.rules import RetentionRules
from nasbackup.steps import retention
from nasbackup.steps.bitmaps import drop_unneeded
from nasbackup.steps.delete import Deletion, delete, leaf_first, list_files
from nasbackup.steps.lease import held_lease
from nasbackup.steps.measure import measure
from nasbackup.steps.ticket import Store

log = logging.getLogger(__name__)

Payload = dict[str, Any]

_SHOWN = 200
"""Lines of a list in the result that people read; the log has all."""


# --- report ---------------------------------------------------------------------------------------------------


def report(*, params: Mapping[str, Any], conf: Mapping[str, Any] | None, dry_run: bool) -> Payload:
    """Judge; say what is to be deleted, VM by VM, and whether somebody has to be asked. Nothing is deleted.

    Raises RequestError; FleetInvalid; CatalogUnreachable.
    """
    require_known_keys(conf, form=retention_params())
    known, database, now = fleet.load(), hooks.catalog(), datetime.now(UTC)
    if params["backups"]:
        if params["vms"] or params["rules"]:
            raise RequestError(problem="Param backups names what is to be deleted: leave vms and rules empty with it.")
        return _report_named(database, names=params["backups"], dry_run=dry_run)
    defined = _defined(known)
    if not dry_run:
        retention.note_unprotected(database, fleet=known, defined=defined, now=now)
    found = retention.report(
        database,
        fleet=known,
        now=now,
        defined=defined,
        vms=params["vms"] or (),
        rules=_rules(params),
        on_holding=_log_verdicts,
    )
    for vm in found.unprotected:
        log.warning("%s is unprotected: %s. Its %d backups go %s.", vm.vm, vm.why, vm.restorable, vm.goes)
    for host, count in found.elsewhere.items():
        log.warning("%d VMs of host %s are left out: fleet.yaml does not name it.", count, host)
    vms = _per_vm(
        (
            doomed.vm,
            doomed.vm_uuid,
            doomed.host,
            {"repository": doomed.repository, "policy": doomed.policy, **asdict(doomed.plan)},
        )
        for doomed in found.chains
    )
    return {
        **_to_do(
            vms,
            dry_run=dry_run,
            question=known.guard.objection(removals=found.deletions, restorable=found.restorable),
        ),
        "vms": found.vms,
        "restorable": found.restorable,
        "kept_by_rule": dict(found.rules),
        "unprotected": [asdict(vm) | {"since": vm.since.isoformat()} for vm in found.unprotected[:_SHOWN]],
        "unprotected_count": len(found.unprotected),
        "vms_of_other_hosts": dict(found.elsewhere),
        "hosts_not_asked": [host for host, uuids in defined.items() if uuids is None],
    }


def _per_vm(found: Iterable[tuple[str, str, str, Payload]]) -> list[Payload]:
    """One task deletes of one VM, in all repositories: it has the VM's lease, which two would take from each other."""
    vms: dict[str, Payload] = {}
    for vm, vm_uuid, host, chain in found:
        work = vms.setdefault(vm_uuid, {"vm": vm, "vm_uuid": vm_uuid, "host": host, "chains": []})
        work["chains"].append(chain)
    return list(vms.values())


def _to_do(vms: list[Payload], *, dry_run: bool, question: str | None) -> Payload:
    """``work`` is what the tasks ``delete`` are made of: none in a dry run."""
    most = mapped.most()
    if len(vms) > most:  # the next run finds the rest again
        log.warning("%d VMs: %d of them are left for the next run", len(vms), len(vms) - most)
    chains = [chain for work in vms for chain in work["chains"]]
    return {
        "dry_run": dry_run,
        "would_delete": [external_id for chain in chains for external_id, _ in chain["delete"]][:_SHOWN],
        "would_delete_count": sum(len(chain["delete"]) for chain in chains),
        "would_free": sum(chain["size"] for chain in chains),
        "work": [] if dry_run else vms[:most],
        "question": question if question and not dry_run else "",
    }


def _report_named(database: Database, *, names: Sequence[str], dry_run: bool) -> Payload:
    """What somebody named is deleted, leaf first; whether it was meant is asked for a lot of them only."""
    known = fleet.load()
    with database.transaction() as cursor:
        wanted = [backups.find(cursor, external_id=name) for name in dict.fromkeys(names)]
    vms = _per_vm(
        (
            group[0].vm,
            group[0].vm_uuid,
            group[0].host,
            {
                "repository": group[0].repository,
                "policy": "",
                "chain": group[-1].external_id,
                "delete": [(backup.external_id, "named") for backup in group],
                "size": sum(backup.size or 0 for backup in group),
            },
        )
        for group in leaf_first(wanted)
    )
    restorable = sum(backup.status is BackupStatus.BACKED_UP for backup in wanted)
    question = known.guard.objection(removals=restorable, restorable=max(restorable, known.guard.backups * 100))
    return _to_do(vms, dry_run=dry_run, question=question)


def _rules(params: Mapping[str, Any]) -> RetentionRules | None:
    return fleet.retention_rules(params["rules"], named="rules") if params["rules"] else None


def _defined(known: Fleet) -> dict[str, frozenset[str] | None]:
    """UUIDs of the VMs that each host defines; None where nobody could ask: any VM may be there."""
    found: dict[str, frozenset[str] | None] = {}
    for host in known.hosts:
        try:
            with connect(hooks.LibvirtHook(libvirt_conn_id=host).get_conn()) as hypervisor:
                found[host] = hypervisor.defined_uuids()
        except NasBackupError as error:
            log.warning("Whether VMs of %s were undefined is not known: %s", host, error)
            found[host] = None
    return found


def _log_verdicts(holding: Any, policy: str, verdicts: Sequence[Any]) -> None:
    for point, keep, rule in verdicts:
        if not keep:
            log.info("%s (%s, %s): to be deleted, %s", point.external_id, holding.repository, policy, rule)


# --- delete ---------------------------------------------------------------------------------------------------


def delete_of_vm(*, work: Payload, params: Mapping[str, Any], run_id: str) -> Payload:
    """Delete what is still unwanted of one VM, chain by chain. A VM that is busy is left for the next run."""
    database = hooks.catalog()
    holder = f"nas_retention/{run_id}"
    # Hours may have gone by, somebody may have been asked: what a rule keeps by now stays. (Named ones have no policy.)
    judged = any(chain["policy"] for chain in work["chains"])
    unwanted = _still_unwanted(database, vm_uuid=work["vm_uuid"], params=params) if judged else None
    chains = [_delete_chain(database, chain=chain, unwanted=unwanted, holder=holder) for chain in work["chains"]]
    if any(chain.pop("was_active") for chain in chains):
        _drop_bitmap(database, work=work, holder=holder)
    return {"vm": work["vm"], "chains": chains}


def _delete_chain(database: Database, *, chain: Payload, unwanted: Set[str] | None, holder: str) -> Payload:
    """``unwanted``: external ids that no rule keeps; None: nobody asks the rules."""
    store = Store(database=database, repository=hooks.NasHook(nas_conn_id=chain["repository"]).get_conn())
    wanted = [external_id for external_id, _ in chain["delete"]]
    left = []
    if unwanted is not None:
        for name in wanted:
            if name not in unwanted:
                left.append({"external_id": name, "why": _why_left(database, external_id=name)})
        wanted = [name for name in wanted if name in unwanted]
    before = list_files(store, vm=chain["chain"].split("/")[0])
    done: list[Deletion] = []
    for name in wanted:
        try:
            done += delete(store, external_ids=[name], holder=holder)
        except (BackupNotDeletable, VmBusy) as error:
            log.warning("%s is left: %s", name, error)
            left.append({"external_id": name, "why": str(error)})
    return {
        "chain": chain["chain"],
        "repository": chain["repository"],
        "removed": [asdict(removal) for deletion in done for removal in deletion.removed],
        "delete_pending": [
            {"external_id": deletion.external_id, "kept_by": deletion.kept_by} for deletion in done if deletion.kept_by
        ],
        "left": left,
        "bytes_freed": sum(deletion.bytes_freed for deletion in done),
        "files_before": before,
        "files_after": list_files(store, vm=chain["chain"].split("/")[0]),
        "was_active": any(deletion.was_active for deletion in done),
    }


def _why_left(database: Database, *, external_id: str) -> str:
    with database.transaction() as cursor:
        found = backups.find_or_none(cursor, external_id=external_id)
    return "a rule keeps it by now" if found is not None else "gone already: an earlier try deleted it"


def _still_unwanted(database: Database, *, vm_uuid: str, params: Mapping[str, Any]) -> set[str]:
    """In all repositories: an external id names one backup of the whole catalog."""
    known = fleet.load()
    found = retention.report(
        database,
        fleet=known,
        now=datetime.now(UTC),
        defined=_defined(known),
        vm_uuid=vm_uuid,
        rules=_rules(params),
    )
    return {external_id for doomed in found.chains for external_id, _ in doomed.plan.delete}


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


# --- summary, capacity ----------------------------------------------------------------------------------------


def summary(*, deleted: Sequence[Payload]) -> Payload:
    """What went, what stays delete-pending, what was left, and the bytes that were freed."""
    chains = [chain for work in deleted for chain in work["chains"]]
    total: Payload = {
        "deleted": sum(len(chain["removed"]) for chain in chains),
        "delete_pending": sum(len(chain["delete_pending"]) for chain in chains),
        "left": [entry for chain in chains for entry in chain["left"]][:_SHOWN],
        "bytes_freed": sum(chain["bytes_freed"] for chain in chains),
    }
    log.info("%(deleted)d backups deleted, %(delete_pending)d delete-pending, %(bytes_freed)d bytes freed", total)
    return total


def measure_capacity(*, repository: str, dry_run: bool) -> Payload:
    """Note how full the repository is. Raises RepositoryFilling when a threshold of fleet.yaml is passed."""
    thresholds, database = fleet.load().capacity, hooks.catalog()
    store = Store(database=database, repository=hooks.NasHook(nas_conn_id=repository).get_conn())
    sample = measure(store, now=datetime.now(UTC))
    with database.transaction() as cursor:
        if not dry_run:
            capacity.add_sample(cursor, repository=repository, sample=sample)
        earlier = capacity.samples(cursor, repository=repository)
    expected = forecast([*earlier, sample])
    warning = expected.warning(thresholds)
    log.info("%s: %.0f %% used, growth %s bytes a day", repository, expected.used_percent, expected.growth_per_day)
    if warning is not None:
        raise RepositoryFilling(repository=repository, why=warning)
    return {"repository": repository, **expected.facts()}
