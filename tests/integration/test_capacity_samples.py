"""How full a repository was: what a clock that was wrong for a night does to it (nothing)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nasbackup.airflow import retention_tasks
from nasbackup.catalog import capacity
from nasbackup.fleet import ENVIRONMENT
from nasbackup.retention.capacity import Sample, forecast
from nasbackup.steps import Site

NOW = datetime(2026, 3, 31, 6, 0, tzinfo=UTC)
GIB = 1 << 30


def sample(moment: datetime, *, used: int) -> Sample:
    return Sample(measured_at=moment, total=1000 * GIB, free=(1000 - used) * GIB, backups=0)


def note(site: Site, *found: Sample) -> None:
    with site.database.transaction() as cursor:
        for each in found:
            capacity.add_sample(cursor, repository=site.repository.name, sample=each)


def known(site: Site, *, now: datetime) -> list[Sample]:
    with site.database.transaction() as cursor:
        return capacity.samples(cursor, repository=site.repository.name, now=now)


def test_a_night_with_the_clock_years_ahead_neither_silences_the_alert_nor_forgets_what_was(site: Site) -> None:
    month = [sample(NOW - timedelta(days=days), used=900 - 10 * days) for days in range(30, 0, -1)]
    note(site, *month)
    note(site, sample(NOW.replace(year=2031), used=100))
    note(site, sample(NOW, used=900))
    found = known(site, now=NOW)
    assert found == [*month, sample(NOW, used=900)]
    assert forecast(found).full_in_days == pytest.approx(10)
    assert known(site, now=NOW.replace(year=2032)) == found, "it went with the one after it"


def test_what_is_older_than_a_year_and_a_bit_goes(site: Site) -> None:
    note(site, *(sample(NOW - timedelta(days=days), used=500) for days in (500, 402, 400, 1)))
    note(site, sample(NOW, used=500))
    assert [(NOW - each.measured_at).days for each in known(site, now=NOW)] == [400, 1, 0]


def test_a_measurement_counts_once(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    note(site, sample(now - timedelta(days=20), used=100), sample(now - timedelta(days=10), used=400))
    (tmp_path / "fleet.yaml").write_text(
        "zones: {default: {hosts: [kvm_test], repositories: [nas_test]}}\ncapacity: {warn_percent: 100, warn_days: 0}\n"
    )
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "fleet.yaml"))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(site.database.parameters["dsn"]))
    connection = {"conn_type": "nas", "extra": {"type": "local", "path": site.repository.path}}
    monkeypatch.setenv("AIRFLOW_CONN_NAS_TEST", json.dumps(connection))
    measured = retention_tasks.measure_capacity(repository="nas_test", dry_run=False)
    found = known(site, now=datetime.now(UTC))
    assert len(found) == 3
    assert measured["growth_per_day"] == pytest.approx(forecast(found).growth_per_day)
