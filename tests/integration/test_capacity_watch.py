"""How full the repositories of fleet.yaml are, as nas_sla_watch measures them through Airflow's Connections."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from nasbackup.airflow import alert_tasks
from nasbackup.catalog import Database, capacity, repositories
from nasbackup.fleet import ENVIRONMENT
from nasbackup.model import Repository, RepositoryType
from nasbackup.steps import Site
from nasbackup.steps.measure import measure_hourly
from nasbackup.steps.ticket import Store

FLEET = "zones: {east: {hosts: [kvm_one], repositories: [nas_gone, nas_test]}}\npolicies: {all: {vms: ['*']}}\n"


def test_one_repository_that_cannot_be_measured_keeps_no_other_from_it(
    database: Database, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    monkeypatch.setenv(ENVIRONMENT, str(file))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_TEST", json.dumps({"conn_type": "nas", "extra": {"path": repository.path}}))
    gone = Repository(name="nas_gone", type=RepositoryType.NFS, path="/mnt/gone", address="nas:/gone")
    with database.transaction() as cursor:
        repositories.register(cursor, repository=gone, uuid="5b1f2c1e-0000-4000-8000-000000000009")
    alert_tasks.measure_repositories()
    with database.reading() as cursor:
        assert len(capacity.samples(cursor, repository="nas_test")) == 1
        assert capacity.failure(cursor, repository="nas_test") is None
        assert capacity.samples(cursor, repository="nas_gone") == []
        assert "There is no repository 'nas_gone'" in str(capacity.failure(cursor, repository="nas_gone"))


def test_what_takes_too_long_is_gone_on_with_by_the_next_look(site: Site, repository: Repository) -> None:
    """One after the other, a filer's ten silent repositories would hold up the looks, and be cut off each hour."""
    with site.database.transaction() as cursor:
        for number in range(2):
            more = Repository(name=f"nas_more_{number}", type=RepositoryType.LOCAL, path=repository.path)
            repositories.register(cursor, repository=more, uuid=f"5b1f2c1e-0000-4000-8000-00000000000{number}")
    names = ["nas_more_0", "nas_more_1", repository.name]
    stores = {name: lambda: Store(database=site.database, repository=repository) for name in names}

    def look(at_most: timedelta) -> list[str]:
        return measure_hourly(site.database, stores=stores, now=site.database.now(), at_most=at_most)

    assert look(timedelta(0)) == ["nas_more_0"], "one at least"
    assert look(timedelta(0)) == ["nas_more_1"]
    assert look(timedelta(minutes=2)) == [repository.name]
    assert look(timedelta(minutes=2)) == []
