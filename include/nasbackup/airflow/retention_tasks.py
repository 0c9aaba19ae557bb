"""Bodies of the tasks of ``nas_retention``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from nasbackup import fleet
from nasbackup.airflow import hooks, mapped
from nasbackup.airflow.asking import ask_hosts
from nasbackup.airflow.forms import require_known_keys, retention_params
from nasbackup.catalog import Database, backups, capacity
from nasbackup.errors import NasBackupError, RepositoryFilling, RequestError
from nasbackup.fleet.last_valid import last_valid
from nasbackup.hypervisor import Hypervisor
from nasbackup.model import BackupStatus
from nasbackup.retention.capacity import forecast
from nasbackup.retention.rules import RetentionRules
from nasbackup.steps import retention
from nasbackup.steps.delete import leaf_first
from nasbackup.steps.measure import measure
from nasbackup.steps.ticket import Store

log = logging.getLogger(__name__)

Payload = dict[str, Any]

_SHOWN = 200
"""Lines of a list in the result that people read; the log has all."""

_NAMED = 10
"""VMs that a question names."""


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
    defined = defined_vms(known.hosts)
    if not dry_run:
        retention.note_unprotected(database, fleet=known, defined=defined, now=now)
    found = retention.report(
        database,
        fleet=known,
        now=now,
        defined=defined,
        vms=params["vms"] or (),
        rules=rules_of(params),
        on_holding=_log_verdicts,
    )
    for vm in found.unprotected:
        log.warning("%s is unprotected: %s. Its %d backups go %s.", vm.vm, vm.why, vm.restorable, vm.goes)
    for host, count in found.elsewhere.items():
        log.warning("%d VMs of host %s are left out: fleet.yaml does not name it.", count, host)
    if found.bereft:
        log.warning("Nothing would be left of %s: that is asked about apart.", ", ".join(sorted(found.bereft.values())))
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
            question=known.guard.objection(
                removals=sum(doomed.plan.restorable for doomed in found.chains if doomed.vm_uuid not in found.bereft),
                restorable=found.restorable,
            ),
            bereft=found.bereft,
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


def _to_do(
    vms: list[Payload], *, dry_run: bool, question: str | None, bereft: Mapping[str, str] = MappingProxyType({})
) -> Payload:
    """``work`` is what the tasks ``delete`` are made of, ``last`` the same for ``delete_last``: none in a dry run.

    ``bereft``: UUID -> name of the VMs that would have no backup afterwards. Somebody is asked about those, always.
    """
    chains = [chain for work in vms for chain in work["chains"]]
    rest = [work for work in vms if work["vm_uuid"] not in bereft]
    last = [work for work in vms if work["vm_uuid"] in bereft]
    return {
        "dry_run": dry_run,
        "would_delete": [external_id for chain in chains for external_id, _ in chain["delete"]][:_SHOWN],
        "would_delete_count": sum(len(chain["delete"]) for chain in chains),
        "would_free": sum(chain["size"] for chain in chains),
        "work": [] if dry_run else _as_many_as_fit(rest),
        "question": question if question and rest and not dry_run else "",
        "last": [] if dry_run else _as_many_as_fit(last),
        "last_question": "" if dry_run or not last else _last_question([work["vm"] for work in last]),
    }


def _as_many_as_fit(vms: list[Payload]) -> list[Payload]:
    """Where they are too many for one run, those first that have most to delete: whoever is left has more tomorrow."""
    most = mapped.most()
    if len(vms) <= most:
        return vms
    log.warning("%d VMs: %d of them are left for the next run", len(vms), len(vms) - most)
    waiting = {work["vm_uuid"]: sum(len(chain["delete"]) for chain in work["chains"]) for work in vms}
    return sorted(vms, key=lambda work: waiting[work["vm_uuid"]], reverse=True)[:most]


def _last_question(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return f"it would delete the last backup of {shown}"


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


def rules_of(params: Mapping[str, Any]) -> RetentionRules | None:
    return fleet.retention_rules(params["rules"], named="rules") if params["rules"] else None


def defined_vms(names: Sequence[str]) -> dict[str, frozenset[str] | None]:
    """UUIDs of the VMs that each of these hosts defines; None where nobody could ask: any VM may be there."""
    answers = ask_hosts(names, Hypervisor.defined_uuids)
    for host, answer in answers.items():
        if isinstance(answer, NasBackupError):
            log.warning("Whether VMs of %s were undefined is not known: %s", host, answer)
    return {host: None if isinstance(answer, NasBackupError) else answer for host, answer in answers.items()}


def _log_verdicts(holding: Any, policy: str, verdicts: Sequence[Any]) -> None:
    for point, keep, rule in verdicts:
        if not keep:
            log.info("%s (%s, %s): to be deleted, %s", point.external_id, holding.repository, policy, rule)


# --- summary, capacity ----------------------------------------------------------------------------------------


def summary(*, deleted: Sequence[Payload]) -> Payload:
    """What went, what stays delete-pending, what was left, what failed, and the bytes that were freed."""
    chains = [chain for work in deleted for chain in work["chains"]]
    total: Payload = {
        "deleted": sum(len(chain["removed"]) for chain in chains),
        "delete_pending": sum(len(chain["delete_pending"]) for chain in chains),
        "left": [entry for chain in chains for entry in chain["left"]][:_SHOWN],
        "failed": [chain["failed"] for chain in chains if chain["failed"]][:_SHOWN],
        "bytes_freed": sum(chain["bytes_freed"] for chain in chains),
    }
    log.info("%(deleted)d backups deleted, %(delete_pending)d delete-pending, %(bytes_freed)d bytes freed", total)
    return total


def measure_capacity(*, repository: str, dry_run: bool) -> Payload:
    """Note how full the repository is. Raises RepositoryFilling when a threshold of fleet.yaml is passed."""
    thresholds, database = last_valid().capacity, hooks.catalog()
    store = Store(database=database, repository=hooks.NasHook(nas_conn_id=repository).get_conn())
    sample = measure(store, now=datetime.now(UTC))
    with database.transaction() as cursor:
        earlier = capacity.samples(cursor, repository=repository, now=sample.measured_at)
        if not dry_run:
            capacity.add_sample(cursor, repository=repository, sample=sample)
    expected = forecast([*earlier, sample])
    warning = expected.warning(thresholds)
    log.info("%s: %.0f %% used, growth %s bytes a day", repository, expected.used_percent, expected.growth_per_day)
    if warning is not None:
        raise RepositoryFilling(repository=repository, why=warning)
    return {"repository": repository, **expected.facts()}
