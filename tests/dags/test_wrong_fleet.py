"""A slip of the pen, in fleet.yaml or in a Variable, stops neither the DAGs nor the watch, and is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from nasbackup.airflow import retention_tasks, sla_tasks
from nasbackup.catalog import Database, alerts
from nasbackup.errors import FleetInvalid
from nasbackup.fleet import ENVIRONMENT

from lab import simulated
from tests.dags.conftest import FLEET, ROOT

WRONG = FLEET.replace('schedule: "0 1 * * *"', 'schedule: "0 25 * * *"')
CHANNELS = """
zones:
  east: {hosts: [kvm_one], repositories: [nas_main]}
policies:
  silver: {vms: ["*"], rpo: 2 hours}
alerts:
  channels:
    pager: {type: webhook, connection: http_pager, severity: critical}
    mail: {type: smtp, connection: smtp_ops, to: [ops@example.org]}
"""
DEADLINE = "AIRFLOW_VAR_NAS.BACKUP.DEADLINE.SECONDS"


def test_all_dags_go_on_with_the_last_valid_file(
    dags: Mapping[str, Any], fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    monkeypatch.setenv(ENVIRONMENT, str(fleet_file))
    fleet_file.write_text(WRONG)
    try:
        bag = DagBag(str(ROOT / "dags"))
    finally:
        fleet_file.write_text(FLEET)
    assert bag.import_errors == {}
    assert {name: sorted(dag.task_dict) for name, dag in bag.dags.items()} == {
        name: sorted(dag.task_dict) for name, dag in dags.items()
    }


@pytest.fixture
def file(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """fleet.yaml of a host with one VM."""
    file = tmp_path / "fleet.yaml"
    file.write_text(CHANNELS)
    host = {"conn_type": "libvirt", "extra": {"uri": simulated.host(tmp_path / "vms", vms=1, size=1 << 20)}}
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIRFLOW_CONN_KVM_ONE", json.dumps(host))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv(ENVIRONMENT, str(file))
    monkeypatch.setenv(DEADLINE, "3600")
    return file


def told(database: Database, channel: str) -> list[tuple[str, str]]:
    """(event, text) of what is to be told, taken as told."""
    with database.transaction() as cursor:
        found = alerts.pending(cursor, channel=channel, limit=100)
        numbers = [notice.delivery_id for notice in found]
        cursor.execute("UPDATE alert_delivery SET delivered_at = now() WHERE delivery_id = ANY(%s)", (numbers,))
    return [(notice.event.value, notice.text) for notice in found]


def kinds_told(database: Database) -> list[tuple[str, str]]:
    with database.transaction() as cursor:
        cursor.execute("UPDATE alert_delivery SET delivered_at = now() WHERE event = 'opened'")
        return [(notice.event.value, notice.kind.value) for notice in alerts.pending(cursor, channel="mail", limit=100)]


def a_quarter_later(database: Database) -> None:
    """Of an hour, since a look found what is open."""
    with database.transaction() as cursor:
        cursor.execute("UPDATE alert SET confirmed_at = confirmed_at - interval '15 minutes'")


def test_the_watch_goes_on_with_the_last_valid_file_and_says_so(database: Database, file: Path) -> None:
    assert sla_tasks.look_at_fleet()["findings"] == {}
    file.write_text(CHANNELS.replace("rpo: 2 hours", "rpo: soon"))
    for _ in range(2):
        looked = sla_tasks.look_at_fleet()
        assert (looked["vms"], looked["findings"]) == ({"ok": 1}, {"fleet_invalid": 1})
    for channel in ("pager", "mail"):
        ((event, text),) = told(database, channel)
        assert event == "opened", "once"
        assert text.startswith(f"fleet.yaml is wrong ({file}, line 5: policies.silver.rpo: ")
        assert " scheduled backups go on with the document of 20" in text
    file.write_text(CHANNELS)
    assert sla_tasks.look_at_fleet()["findings"] == {}
    assert told(database, "pager") == [], "it may be wrong again in a moment"
    a_quarter_later(database)
    assert sla_tasks.look_at_fleet()["findings"] == {}
    assert [event for event, _ in told(database, "pager")] == ["closed"]


def test_each_airflow_that_shares_the_catalog_has_a_fleet_of_its_own(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other one's look neither ends what is wrong here nor tells that it were."""
    monkeypatch.setenv("AIRFLOW_CONN_KVM_TWO", '{"conn_type": "libvirt", "extra": {"uri": "test:///default"}}')
    other = tmp_path / "other.yaml"
    other.write_text(CHANNELS.replace("kvm_one", "kvm_two").replace("pager:", "chat:"))

    def look(place: Path) -> dict[str, Any]:
        monkeypatch.setenv(ENVIRONMENT, str(place))
        return sla_tasks.look_at_fleet()

    look(file)
    file.write_text(CHANNELS.replace("rpo: 2 hours", "rpo: soon"))
    for _ in range(2):
        assert look(file)["findings"] == {"fleet_invalid": 1}
        a_quarter_later(database)
        assert look(other)["alerts_closed"] == 0
    assert [event for event, _ in told(database, "pager")] == ["opened"]
    file.write_text(CHANNELS.replace("[kvm_one]", "[kvm_zero, kvm_one]"))  # another host is the first by now
    look(file)
    closed = [text for event, text in told(database, "pager") if event == "closed"]
    assert [text.startswith("fleet.yaml is wrong") for text in closed] == [True]


def test_what_was_wrong_is_over_also_when_the_first_host_goes_with_it(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = CHANNELS.replace("[kvm_one]", "[kvm_one, kvm_zero]")
    file.write_text(two)
    sla_tasks.look_at_fleet()
    file.write_text(two.replace("rpo: 2 hours", "rpo: soon"))
    sla_tasks.look_at_fleet()
    file.write_text(CHANNELS.replace("kvm_one", "kvm_zero"))
    a_quarter_later(database)
    sla_tasks.look_at_fleet()
    assert [kind for event, kind in kinds_told(database) if event == "closed"] == []
    with database.transaction() as cursor:
        cursor.execute("UPDATE sla_look SET looked_at = looked_at - interval '1 hour' WHERE host = 'kvm_one'")
    sla_tasks.look_at_fleet()
    assert [kind for event, kind in kinds_told(database) if event == "closed"] == ["fleet_invalid"]


def test_nothing_is_deleted_by_a_document_that_is_about_to_change(file: Path) -> None:
    sla_tasks.look_at_fleet()
    file.write_text(CHANNELS.replace("rpo: 2 hours", "rpo: soon"))
    params = {"backups": [], "vms": [], "rules": None}
    with pytest.raises(FleetInvalid, match=r"policies\.silver\.rpo"):
        retention_tasks.report(params=params, conf={}, dry_run=False)


def test_a_wrong_variable_stops_no_look_and_is_told(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEADLINE, "2h")
    looked = sla_tasks.look_at_fleet()
    assert (looked["vms"], looked["findings"]) == ({"ok": 1}, {"setting_invalid": 1})
    ((event, text),) = told(database, "mail")
    assert event == "opened"
    assert text == (
        "Variable nas.backup.deadline.seconds is '2h': it must be a whole number of seconds from 1 to 999999. "
        "Until then 6 hours counts."
    )
    monkeypatch.setenv(DEADLINE, "7200")
    a_quarter_later(database)
    assert sla_tasks.look_at_fleet()["alerts_closed"] == 1
