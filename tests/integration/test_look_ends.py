"""The end of a look, as the task of nas_sla_watch comes to it: real libvirt, a real catalog."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nasbackup.airflow import sla_tasks
from nasbackup.catalog import Database, looks, migrate
from nasbackup.errors import CatalogOutdated

FLEET = "zones: {default: {hosts: [kvm_test, kvm_unknown], repositories: [nas_one]}}"


@pytest.fixture
def looked(database: Database) -> Callable[[], looks.Looks]:
    def ask() -> looks.Looks:
        with database.reading() as cursor:
            return looks.last(cursor, hosts=["kvm_test", "kvm_unknown"])

    return ask


def test_a_look_counts_when_what_it_found_is_settled_and_without_any_vm(
    database: Database, looked: Callable[[], looks.Looks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that does not answer was looked at as well: that it is silent is what was found."""
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    monkeypatch.setenv("NASBACKUP_FLEET", str(file))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv("AIRFLOW_CONN_KVM_TEST", '{"conn_type": "libvirt", "extra": {"uri": "test:///default"}}')
    monkeypatch.setenv("AIRFLOW_VAR_NAS.BACKUP.DEADLINE.SECONDS", "3600")
    with database.transaction() as cursor:
        cursor.execute("ALTER TABLE alert RENAME TO alert_that_is_away")
    with pytest.raises(CatalogOutdated):
        sla_tasks.look_at_fleet()
    assert (looked().oldest, looked().never) == (None, ("kvm_test", "kvm_unknown"))

    with database.transaction() as cursor:
        cursor.execute("ALTER TABLE alert_that_is_away RENAME TO alert")
    assert sla_tasks.look_at_fleet()["findings"]["host_silent"] == 1
    first = looked().at
    assert first is not None
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM vm")
    sla_tasks.look_at_fleet()
    again = looked().at
    assert again is not None
    assert again > first


@pytest.fixture
def watched(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("zones: {default: {hosts: [kvm_test], repositories: [nas_one]}}")
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("NASBACKUP_FLEET", str(file))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv("AIRFLOW_CONN_KVM_TEST", '{"conn_type": "libvirt", "extra": {"uri": "test:///default"}}')
    monkeypatch.setenv("AIRFLOW_VAR_NAS.BACKUP.DEADLINE.SECONDS", "3600")


@pytest.mark.usefixtures("watched")
def test_a_look_is_of_the_time_after_the_hosts_were_asked(
    database: Database, looked: Callable[[], looks.Looks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may take long: what is backed up meanwhile is not dated in the future."""
    asked: list[datetime] = []
    real = sla_tasks.ask_hosts

    def noted(*arguments: Any, **options: Any) -> Any:
        answers = real(*arguments, **options)
        asked.append(database.now())
        return answers

    monkeypatch.setattr(sla_tasks, "ask_hosts", noted)
    sla_tasks.look_at_fleet()
    oldest = looked().oldest
    assert oldest is not None
    assert oldest > asked[0]


@pytest.mark.usefixtures("watched")
def test_a_host_that_went_is_said_to_be_gone_until_nothing_is_left_on_it(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute(
            "INSERT INTO vm (uuid, name, host, seen_at) VALUES (gen_random_uuid(), 'i-2-1-VM', 'kvm_gone',"
            " now() - interval '2 hours')"
        )
    assert sla_tasks.look_at_fleet()["findings"]["host_dropped"] == 1
    assert sla_tasks.look_at_fleet()["alerts_closed"] == 0
    with database.transaction() as cursor:
        cursor.execute("UPDATE vm SET defined = false WHERE host = 'kvm_gone'")
    assert sla_tasks.look_at_fleet()["alerts_closed"] == 1


def test_an_upgrade_knows_of_the_looks_before_it(database: Database, looked: Callable[[], looks.Looks]) -> None:
    at = datetime(2026, 11, 25, 12, tzinfo=UTC)
    with database.transaction() as cursor:
        cursor.execute("DROP TABLE sla_look; DELETE FROM schema_migration WHERE name = '0010_looks'")
        cursor.execute(
            """
            INSERT INTO vm (uuid, name, host) VALUES (gen_random_uuid(), 'i-2-1-VM', 'kvm_test'),
                   (gen_random_uuid(), 'i-2-2-VM', 'kvm_test');
            INSERT INTO sla_status (vm_id, status, checked_at) SELECT vm_id, 'ok', %s - vm_id * %s FROM vm
            """,
            (at, timedelta(minutes=5)),
        )
    assert migrate(database) == ["0010_looks"]
    assert (looked().oldest, looked().never) == (at - timedelta(minutes=5), ("kvm_unknown",))
