"""Airflow's deadline of a run: what it says is told, stays as long as it is true, and agrees with the policy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from nasbackup.airflow import deadline
from nasbackup.catalog import Database, alerts, inventory, repositories
from nasbackup.fleet import ENVIRONMENT, load
from nasbackup.model import Repository, RepositoryType, SeenVm, VmState
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind
from nasbackup.steps.alerts import settle
from nasbackup.steps.look import look

FLEET = """
zones:
  east: {hosts: [kvm_one, kvm_two], repositories: [nas_one]}
policies:
  patient: {titles: ["Archive*"], deadline: 12 hours}
  strict: {titles: ["Database*"], deadline: 2 hours}
  plain: {vms: ["*"]}
alerts:
  channels:
    mail: {type: smtp, connection: smtp_ops, to: [ops@example.org]}
"""
SIX_HOURS = timedelta(hours=6)
NAME, UUID = "i-2-1-VM", "5b1f2c1e-0000-4000-8000-000000000001"
ASKED = f"A backup of {NAME} was asked for 6 hours ago and has not begun; its deadline was 6 hours."
RUNS = f"A backup of {NAME} has been running for 6 hours; its deadline was 6 hours."


@pytest.fixture
def catalog(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    monkeypatch.setenv(ENVIRONMENT, str(file))
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    with database.transaction() as cursor:
        repository = Repository(name="nas_one", type=RepositoryType.LOCAL, path="/mnt/nas_one")
        repositories.register(cursor, repository=repository, uuid=str(uuid4()))
    return database


@pytest.fixture
def seen(catalog: Database) -> Callable[..., None]:
    """A look has seen the VM, and the host's other."""

    def note(*, title: str = "", host: str = "kvm_one") -> None:
        vm = SeenVm(name=NAME, uuid=UUID, host=host, state=VmState.RUNNING, title=title)
        with catalog.transaction() as cursor:
            inventory.note_seen(cursor, host=host, seen=[vm], now=datetime.now(UTC))

    return note


def begin(database: Database, *, ago: timedelta, run_id: str = "late") -> None:
    with database.transaction() as cursor:
        cursor.execute(
            """
            INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_position,
                                host, vm_state, request, run_id, lease_token, created_at)
            SELECT vm_id, repository_id, %s, 'FULL', 'BackingUp', 'forced_full', '', 0, vm.host, 'running', '{}', %s,
                   1, %s
              FROM vm, repository
            """,
            (str(uuid4()), f"nas_backup/{run_id}", datetime.now(UTC) - ago),
        )


def end(database: Database, *, status: str) -> None:
    with database.transaction() as cursor:
        cursor.execute(
            "UPDATE backup SET status = %s, recorded_at = now(), size = 1, cleaned_at = now()"
            " WHERE status = 'BackingUp'",
            (status,),
        )


def tell(database: Database, **conf: str) -> None:
    deadline._tell(database, run_id="late", conf={"vm": NAME, **conf}, deadline=SIX_HOURS)


def watch(database: Database, *, later: timedelta = timedelta()) -> None:
    """One look at what was last seen, and all is told that is to be told."""
    known, now = load(), datetime.now(UTC) + later
    found = look(database, fleet=known, seen={}, now=now)
    settle(database, findings=found.findings, looked_at=found.subjects, channels=known.channels, now=now)


def told(database: Database) -> list[tuple[str, str]]:
    with database.transaction() as cursor:
        found = alerts.pending(cursor, channel="mail", limit=10)
        alerts.delivered(cursor, delivery_ids=[notice.delivery_id for notice in found], now=datetime.now(UTC))
    return [(notice.event.value, notice.text) for notice in found if notice.kind.value == "overdue"]


@pytest.mark.parametrize("conf", [{}, {"host": "kvm_one"}])
def test_a_run_that_has_not_begun_is_told_until_one_begins(
    catalog: Database, seen: Callable[..., None], conf: dict[str, Any]
) -> None:
    seen()
    tell(catalog, **conf)
    for minutes in (1, 6, 60):
        watch(catalog, later=timedelta(minutes=minutes))
    assert told(catalog) == [("opened", ASKED)]
    begin(catalog, ago=timedelta(hours=-2))
    watch(catalog, later=timedelta(hours=2, minutes=1))
    assert told(catalog) == [("closed", ASKED)]


def test_a_run_of_which_nobody_hears_again_is_over_after_a_day(catalog: Database, seen: Callable[..., None]) -> None:
    seen()
    tell(catalog)
    watch(catalog, later=timedelta(hours=23))
    assert told(catalog) == [("opened", ASKED)]
    watch(catalog, later=timedelta(hours=25))
    assert [event for event, _ in told(catalog)] == ["closed"]


@pytest.mark.parametrize("status", ["BackedUp", "Failed"])
def test_a_run_that_waited_before_it_began_is_told_until_its_end(
    catalog: Database, seen: Callable[..., None], status: str
) -> None:
    seen()
    begin(catalog, ago=timedelta(hours=5))
    tell(catalog)
    watch(catalog, later=timedelta(minutes=1))
    assert told(catalog) == [("opened", RUNS)]
    watch(catalog, later=timedelta(hours=2))  # by now the look finds it as well
    end(catalog, status=status)
    watch(catalog, later=timedelta(hours=2, minutes=5))
    assert [event for event, _ in told(catalog)] == ["closed"]


def test_a_longer_deadline_of_the_policy_counts(catalog: Database, seen: Callable[..., None]) -> None:
    seen(title="Archive of mail")
    begin(catalog, ago=SIX_HOURS)
    tell(catalog)
    assert told(catalog) == []
    watch(catalog, later=timedelta(hours=7))
    ((event, text),) = told(catalog)
    assert event == "opened"
    assert text.endswith("its deadline was 12 hours.")


def test_of_a_run_that_has_not_begun_it_is_said_also_under_a_longer_deadline(
    catalog: Database, seen: Callable[..., None]
) -> None:
    """No look would ever see it."""
    seen(title="Archive of mail")
    tell(catalog)
    watch(catalog, later=timedelta(minutes=1))
    text = ASKED.replace("its deadline was 6 hours", "its deadline is 12 hours")
    assert told(catalog) == [("opened", text)]


def test_what_is_open_is_not_forgotten_by_a_triggerer_whose_clock_is_ahead(
    catalog: Database, seen: Callable[..., None]
) -> None:
    other = Subject(kind=SubjectKind.HOST, key="kvm_one", label="kvm_one")
    silent = Finding(kind=Kind.HOST_SILENT, severity=Severity.CRITICAL, subject=other, text="It is.", hint="See.")
    seen()
    settle(catalog, findings=[silent], looked_at=[other], channels=(), now=catalog.now())
    with time_machine.travel(datetime.now(UTC) + timedelta(days=30), tick=True):
        tell(catalog)
    with catalog.reading() as cursor:
        assert {alert.finding.kind for alert in alerts.open_alerts(cursor)} == {Kind.HOST_SILENT, Kind.OVERDUE}


def test_a_backup_of_a_host_that_went_from_fleet_yaml_is_not_late_for_ever(
    catalog: Database, seen: Callable[..., None], tmp_path: Path
) -> None:
    """Its row stays as it is: nobody clears it up there."""
    seen()
    begin(catalog, ago=SIX_HOURS)
    tell(catalog)
    (tmp_path / "fleet.yaml").write_text(FLEET.replace("kvm_one, ", ""))
    watch(catalog, later=timedelta(days=6))
    assert told(catalog) == [("opened", RUNS)]
    watch(catalog, later=timedelta(days=8))
    assert told(catalog) == [("closed", RUNS)]


def test_a_shorter_deadline_of_the_policy_is_the_one_that_is_told(catalog: Database, seen: Callable[..., None]) -> None:
    seen(title="Database of mail")
    tell(catalog)
    watch(catalog)
    ((_, text),) = told(catalog)
    assert text.endswith("its deadline was 2 hours.")


def test_a_run_whose_backup_has_ended_is_not_late(catalog: Database, seen: Callable[..., None]) -> None:
    seen()
    begin(catalog, ago=SIX_HOURS)
    end(catalog, status="BackedUp")
    tell(catalog)
    assert told(catalog) == []


def test_the_vm_is_the_one_on_the_runs_host(catalog: Database, seen: Callable[..., None]) -> None:
    seen(host="kvm_two")
    tell(catalog)
    assert told(catalog) == []
    tell(catalog, host="kvm_two")
    assert told(catalog) == [("opened", ASKED)]
