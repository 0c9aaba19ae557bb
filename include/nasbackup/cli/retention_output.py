"""What the commands of retention print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from nasbackup.catalog.restore_points import Holding
from nasbackup.cli.output import add_row, print_json, say, show_facts, stdout
from nasbackup.model import BackupStatus
from nasbackup.retention.capacity import Forecast, Thresholds
from nasbackup.retention.plan import chain_plans
from nasbackup.retention.rules import RetentionRules
from nasbackup.retention.simulate import Snapshot
from nasbackup.retention.verdicts import Verdict
from nasbackup.steps.delete import Deletion, Preview
from nasbackup.steps.retention import Report
from nasbackup.words import size

__all__ = ["Holdings", "show_capacity", "show_deletions", "show_facts", "show_preview", "show_simulation"]

_ROWS = 25
"""Lines of a simulation: more say no more."""


class Holdings:
    """The report, VM by VM as it is made: a table each, or all of it as one JSON document."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._documents: list[dict[str, Any]] = []

    def add(self, holding: Holding, policy: str, verdicts: Sequence[Verdict]) -> None:
        pending = {external_id for plan in chain_plans(verdicts) for external_id in plan.pending}
        if self._as_json:
            self._documents.append(
                {
                    "vm": holding.vm,
                    "repository": holding.repository,
                    "policy": policy,
                    "backups": [_verdict(verdict, pending=pending) for verdict in verdicts],
                }
            )
            return
        table = Table(box=None, header_style="bold", title_justify="left", title_style="bold")
        table.title = Text(f"\n{holding.vm} in {holding.repository}, policy {policy}")
        for heading in ("BACKUP", "TYPE", "STATUS", "VERDICT", "RULE"):
            table.add_column(heading, no_wrap=heading == "BACKUP")
        for verdict in verdicts:
            document = _verdict(verdict, pending=pending)
            add_row(table, *(str(document[key]) for key in ("external_id", "type", "status", "verdict", "rule")))
        stdout().print(table)

    def show(self, found: Report) -> None:
        if self._as_json:
            return print_json(
                {
                    "holdings": self._documents,
                    "unprotected": [asdict(vm) | {"since": vm.since.isoformat()} for vm in found.unprotected],
                    "vms_of_other_hosts": dict(found.elsewhere),
                    "restorable": found.restorable,
                    "to_delete": found.deletions,
                }
            )
        for vm in found.unprotected:
            say(f"{vm.vm} is unprotected: {vm.why}. Its {vm.restorable} backups go {vm.goes}.")
        for host, count in found.elsewhere.items():
            say(f"{count} VMs of host {host} are left out: fleet.yaml does not name it.")
        say(f"\n{found.vms} VMs, {found.restorable} restorable backups, {found.deletions} of them would be deleted.")


def _verdict(verdict: Verdict, *, pending: set[str]) -> dict[str, Any]:
    point, keep, rule = verdict
    waits = point.external_id in pending or point.status == BackupStatus.DELETE_PENDING
    word = "keep" if keep else "delete-pending" if waits else "delete"
    return {
        "external_id": point.external_id,
        "type": "FULL" if point.is_full else "INCREMENTAL",
        "status": str(point.status),
        "verdict": word,
        "rule": rule,
    }


def show_preview(found: Sequence[Preview], *, as_json: bool) -> None:
    if as_json:
        return print_json([asdict(preview) for preview in found])
    for preview in found:
        if preview.refused:
            say(f"{preview.external_id}: refused, {preview.refused}")
        elif preview.goes:
            say(f"{preview.external_id}: would be deleted")
        else:
            say(f"{preview.external_id}: would be delete-pending, kept by {', '.join(preview.kept_by)}")


def show_deletions(done: Sequence[Deletion], *, as_json: bool) -> None:
    if as_json:
        return print_json([asdict(deletion) | {"bytes_freed": deletion.bytes_freed} for deletion in done])
    for deletion in done:
        for removal in deletion.removed:
            say(f"{removal.external_id}: deleted, {size(removal.bytes_freed)} freed")
        if deletion.kept_by:
            say(f"{deletion.external_id}: delete-pending, kept by {', '.join(deletion.kept_by)}")
        elif not deletion.removed:
            say(f"{deletion.external_id}: gone already")
        if deletion.was_active:
            say("  The next backup of the VM is a full; its bitmap is dropped then, or by nas_reconcile.")


def show_simulation(snapshots: Iterable[Snapshot], *, rules: RetentionRules, days: int, as_json: bool) -> None:
    every = list(snapshots)
    if as_json:
        return print_json([_snapshot(snapshot) for snapshot in every])
    say(f"{rules or 'no rules'} over {days} days, {len(every)} backups")
    table = Table(box=None, header_style="bold")
    table.add_column("AFTER", no_wrap=True)
    for heading in ("BACKUPS", "FULLS", "DELETE-PENDING", "OLDEST, DAYS"):
        table.add_column(heading, justify="right")
    for index, snapshot in enumerate(every):
        if index % max(1, len(every) // _ROWS) == 0 or index == len(every) - 1:
            document = _snapshot(snapshot)
            keys = ("now", "restorable", "fulls", "delete_pending", "oldest_days")
            add_row(table, *(str(document[key]) for key in keys))
    stdout().print(table)
    if every:
        say(f"\nKept in the end, {every[-1].now:%Y-%m-%d %H:%M} UTC:")
        for rule, group in groupby(every[-1].restorable, key=lambda verdict: verdict.rule):
            dates = [f"{verdict.point.created_at:%Y-%m-%d %H:%M}" for verdict in group]
            shown = dates if len(dates) <= 4 else [*dates[:2], "…", dates[-1]]
            say(f"  {rule}: {len(dates)} ({', '.join(shown)})")
        if every[-1].pending:
            say(f"  delete-pending, in use by kept ones: {every[-1].pending}")


def _snapshot(snapshot: Snapshot) -> dict[str, Any]:
    kept = [verdict.point for verdict in snapshot.restorable]
    return {
        "now": f"{snapshot.now:%Y-%m-%d %H:%M}",
        "restorable": len(kept),
        "fulls": sum(point.is_full for point in kept),
        "delete_pending": snapshot.pending,
        "oldest_days": (snapshot.now - kept[0].created_at).days if kept else 0,
        "kept": [
            {"created": verdict.point.created_at.isoformat(), "rule": verdict.rule} for verdict in snapshot.restorable
        ],
    }


def show_capacity(found: Mapping[str, Forecast], *, thresholds: Thresholds, as_json: bool) -> None:
    documents = [capacity_document(name, forecast, thresholds=thresholds) for name, forecast in found.items()]
    if as_json:
        return print_json(documents)
    table = Table(box=None, header_style="bold")
    table.add_column("REPOSITORY", no_wrap=True)
    for heading in ("USED", "FREE", "%", "BACKUPS", "GROWTH A DAY", "FULL IN DAYS"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for document, forecast in zip(documents, found.values(), strict=True):
        growth, days = forecast.growth_per_day, forecast.full_in_days
        add_row(
            table,
            document["repository"],
            size(forecast.now.used),
            size(forecast.now.free),
            f"{forecast.used_percent:.0f}",
            size(forecast.now.backups),
            "not known yet" if growth is None else size(growth),
            "" if days is None else f"{days:.0f}",
            document["warning"] or "",
        )
    stdout().print(table)


def capacity_document(name: str, forecast: Forecast, *, thresholds: Thresholds) -> dict[str, Any]:
    return {"repository": name, **forecast.facts(), "warning": forecast.warning(thresholds)}
