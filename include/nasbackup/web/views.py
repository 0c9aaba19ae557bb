"""From what the catalog holds to what a view shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nasbackup.catalog import Cursor
from nasbackup.catalog.pages import alerts as catalog_alerts
from nasbackup.catalog.pages import fleet
from nasbackup.catalog.pages import now as catalog_now
from nasbackup.catalog.pages.alerts import Alert
from nasbackup.catalog.pages.history import BackupRow
from nasbackup.catalog.pages.stock import RepositoryRow
from nasbackup.retention.capacity import Forecast, Thresholds, forecast
from nasbackup.web.chain_picture import Link
from nasbackup.web.compliance import Compliance, of_policies
from nasbackup.web.params import Alerts, Paging
from nasbackup.web.site import Page

DRAWN = 200
"""Backups of one VM that pictures are made of; all others are in its table."""


@dataclass(frozen=True, kw_only=True)
class RepositoryView:
    """``forecast`` None: it was not measured yet. ``warning``: why somebody should make room."""

    row: RepositoryRow
    forecast: Forecast | None
    warning: str | None


def objectives(page: Page) -> dict[str, float]:
    """Policy -> its SLO in percent."""
    known, _ = page.fleet()
    return {policy.name: policy.slo for policy in known.policies} if known else {}


def policies(cursor: Cursor, page: Page) -> list[Compliance]:
    return of_policies(
        counted=[(day.policy, day.day, day.looks, day.compliant) for day in fleet.policy_days(cursor)],
        now=fleet.by_policy(cursor),
        objectives=objectives(page),
        today=catalog_now(cursor).date(),
    )


def why_no_backup(page: Page, vm: fleet.Row) -> str:
    """Why a run of nas_backup could not back this VM up, or would take another one of its name; empty: it can."""
    if not vm.defined:
        return f"{vm.host} does not define {vm.name} any more: there is nothing to back up."
    known, _ = page.fleet()
    if known is not None and known.find_zone(vm.host) is None:
        return f"{vm.name} is on {vm.host}, which is not in fleet.yaml (any more): no run can reach it there."
    return ""


def repositories(rows: Sequence[RepositoryRow], page: Page) -> list[RepositoryView]:
    known, _ = page.fleet()
    thresholds = known.capacity if known else Thresholds()
    found = []
    for row in rows:
        expected = forecast(row.samples) if row.samples else None
        warning = expected.warning(thresholds) if expected else None
        found.append(RepositoryView(row=row, forecast=expected, warning=warning))
    return found


def alerts(cursor: Cursor, *, wanted: Alerts, paging: Paging) -> tuple[list[Alert], int]:
    """A page of them, and how many there are."""
    return catalog_alerts.alerts(
        cursor,
        open_ones=not wanted.closed,
        severity=wanted.severity.value,
        search=wanted.search,
        limit=paging.per,
        offset=paging.offset,
    )


def links(rows: Sequence[BackupRow]) -> list[Link]:
    """What of these can be drawn: a failed backup of which nothing is left is no part of a chain."""
    return [
        Link(
            backup_id=row.backup_id,
            external_id=row.external_id,
            type=row.type,
            status=row.status,
            chain_id=row.chain_id,
            chain_position=row.chain_position,
            parent_id=row.parent_id,
            created_at=row.created_at,
            size=row.size,
            verified=row.verified_at is not None,
            pinned=row.pinned_at is not None,
            drill=row.drill,
            generated=row.generated,
        )
        for row in rows
        if not row.gone
    ]


def series(rows: Sequence[BackupRow]) -> dict[str, list[float | None]]:
    """For the charts of one VM, the oldest first: columns of equal length, seconds and bytes."""
    done = [row for row in reversed(rows) if row.recorded_at is not None]
    return {
        "time": [row.created_at.timestamp() for row in done],
        "duration": [row.duration for row in done],
        "throughput": [row.throughput for row in done],
        "changed": [row.changed for row in done],
        "size": [row.size for row in done],
    }
