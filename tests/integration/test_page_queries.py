"""The page's queries against a real PostgreSQL, and every view drawn from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2.errors
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from nasbackup.catalog import Database, looks, repositories
from nasbackup.catalog.pages import alerts, fleet, history, reading, running, stock
from nasbackup.catalog.pages.fleet import Sort, VmStatus, Wanted
from nasbackup.errors import CatalogUnreachable
from nasbackup.model import BackupStatus, Repository, RepositoryType
from nasbackup.web.app import Guards, create

from lab import seed

NOW = datetime.now(UTC)
VMS, EACH = 60, 23
PREFIX = "i-2-"
HOSTILE = "\"><script>alert(1)</script>' %_\\ {{7*7}}"
FLEET = """
zones:
  default: {hosts: [kvm_one], repositories: [nas_one]}
policies:
  gold: {vms: ["*"], slo: 99.9, rpo: {warn_after: 14 hours, error_after: 26 hours}}
"""


@pytest.fixture
def catalog(database: Database) -> Database:
    """A fleet of sixty VMs."""
    repository = Repository(name="nas_one", type=RepositoryType.NFS, path="/mnt/nas", address="nas:/backups")
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=str(uuid4()))
    seed.fleet(database, seed.Plan(vms=VMS, each=EACH, now=NOW, prefix=PREFIX, repository="nas_one"))
    return database


@pytest.fixture
def client(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The application over this catalog, for somebody who may do everything."""
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    monkeypatch.setenv("NASBACKUP_FLEET", str(file))

    def view() -> None: ...

    def triggers() -> frozenset[str]:
        return frozenset({"nas_backup", "nas_restore"})

    root = FastAPI()
    root.mount("/nasbackup", create(database=lambda: database, guards=Guards(view=view, triggers=triggers)))
    with TestClient(root, headers={"Accept": "text/html"}, follow_redirects=False) as client:
        yield client


def everything(cursor: Any, **changes: Any) -> list[fleet.Row]:
    return fleet.rows(cursor, wanted=Wanted(limit=10_000, **changes))


KEYS = {
    Sort.NAME: lambda row: row.name,
    Sort.AGE: lambda row: row.newest_at,
    Sort.BACKUPS: lambda row: row.backups,
    Sort.SIZE: lambda row: row.size,
    Sort.POLICY: lambda row: row.policy,
    Sort.HOST: lambda row: row.host,
    Sort.URGENCY: lambda row: (list(VmStatus).index(row.status), row.newest_at),
}


@pytest.mark.parametrize("sort", list(Sort))
def test_each_order_is_what_it_says_in_both_directions_and_pages_hold_every_vm_once(
    catalog: Database, sort: Sort
) -> None:
    with reading(catalog) as cursor:
        for descending in (False, True):
            wanted = [
                Wanted(sort=sort, descending=descending, limit=7, offset=offset) for offset in range(0, VMS + 7, 7)
            ]
            paged = [row for page in wanted for row in fleet.rows(cursor, wanted=page)]
            assert len({row.uuid for row in paged}) == len(paged) == VMS
            known = [row for row in paged if not (sort is Sort.POLICY and row.policy is None)]
            keys = [KEYS[sort](row) for row in known]
            assert keys == sorted(keys, reverse=descending)


def test_filters_and_counts_agree(catalog: Database) -> None:
    with reading(catalog) as cursor:
        rows = everything(cursor)
        counts = fleet.counts(cursor, wanted=Wanted())
        assert counts == {status: sum(row.status is status for row in rows) for status in VmStatus}
        assert min(counts[status] for status in ("critical", "warning", "unprotected", "ok")) > 0
        some = everything(cursor, statuses=(VmStatus.CRITICAL, VmStatus.UNPROTECTED))
        assert {row.uuid for row in some} == {row.uuid for row in rows if row.status in ("critical", "unprotected")}
        gold = everything(cursor, policy="gold")
        assert {row.policy for row in gold} == {"gold"}
        assert sum(fleet.counts(cursor, wanted=Wanted(policy="gold", statuses=(VmStatus.OK,))).values()) == len(gold)
        assert everything(cursor, zone="default", host="kvm_one", search="erp DATA") == [
            row for row in rows if row.title == "ERP database" and row.zone == "default"
        ]
        assert everything(cursor, search=rows[3].uuid) == [rows[3]]
        assert everything(cursor, host="kvm_two") == []


@pytest.mark.parametrize("search", ["%", "_", "\\", "'; DROP TABLE vm; --", "\N{SNOWMAN}"])
def test_what_is_searched_for_is_letters_and_no_pattern(catalog: Database, search: str) -> None:
    with reading(catalog) as cursor:
        assert everything(cursor, search=search) == []
    with catalog.transaction() as cursor:
        cursor.execute("UPDATE vm SET title = %s WHERE name = %s", (f"a{search}b", f"{PREFIX}7-VM"))
    with reading(catalog) as cursor:
        assert [row.name for row in everything(cursor, search=search)] == [f"{PREFIX}7-VM"]


def test_a_vm_that_nobody_judged_is_unknown_and_one_that_is_not_defined_is_gone(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        cursor.execute("DELETE FROM sla_status USING vm WHERE vm.vm_id = sla_status.vm_id AND name LIKE '%-7-VM'")
        cursor.execute("UPDATE vm SET defined = false WHERE name LIKE '%-8-VM'")
    with reading(catalog) as cursor:
        by_name = {row.name: row for row in everything(cursor)}
        assert by_name[f"{PREFIX}7-VM"].status is VmStatus.UNKNOWN
        assert by_name[f"{PREFIX}8-VM"].status is VmStatus.GONE
        assert everything(cursor)[-1].name == f"{PREFIX}8-VM"
        assert (by_name[f"{PREFIX}3-VM"].running, by_name[f"{PREFIX}9-VM"].running) == (True, False)
        assert all(row.generated for row in by_name.values())


def test_compliance_of_a_vm_and_of_its_policy_count_the_last_thirty_days(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        cursor.execute(
            "INSERT INTO sla_policy_day VALUES (current_date - 40, 'gold', 100, 0);"
            "INSERT INTO sla_day SELECT current_date - 40, vm_id, 'gold', 100, 0 FROM vm"
        )
    with reading(catalog) as cursor:
        days = fleet.policy_days(cursor)
        assert {day.policy for day in days} == {"gold", "standard"}
        assert len(days) == 60
        (row,) = everything(cursor, search=f"{PREFIX}12-VM")
        mine = fleet.vm_days(cursor, vm_id=row.vm_id)
        assert (row.looks, row.compliant) == (sum(day.looks for day in mine), sum(day.compliant for day in mine))
        assert row.looks == 30 * 288
        gold = [row for row in everything(cursor) if row.policy == "gold"]
        assert fleet.by_policy(cursor)["gold"] == (len(gold), sum(row.status != "critical" for row in gold))


def test_history_holds_every_backup_of_the_vm_and_what_its_volumes_add_up_to(catalog: Database) -> None:
    with reading(catalog) as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}35-VM")
        rows = history.backups_of(cursor, vm_id=row.vm_id, limit=1000)
        assert len(rows) == history.count_of(cursor, vm_id=row.vm_id) == EACH
        pages = [
            one
            for offset in range(0, EACH, 5)
            for one in history.backups_of(cursor, vm_id=row.vm_id, limit=5, offset=offset)
        ]
        assert pages == rows
        assert [one.created_at for one in rows] == sorted((one.created_at for one in rows), reverse=True)
        full = rows[-1]
        assert (full.type, full.status, full.changed) == ("FULL", BackupStatus.DELETE_PENDING, None)
        assert rows[0].changed == rows[0].bytes_read == rows[0].size
        assert rows[0].duration == pytest.approx(25 + (rows[0].copy_seconds or 0), abs=0.01)
        assert rows[0].throughput == pytest.approx((rows[0].bytes_read or 0) / (rows[0].copy_seconds or 1))
        assert [one.drill for one in rows[:3]] == [None, "failed", None]
        (drill,) = history.drills_of(cursor, vm_id=row.vm_id)
        assert (drill.external_id, drill.result, drill.rto_seconds) == (rows[1].external_id, "failed", None)
        assert history.vm_of_backup(cursor, external_id=full.external_id) == row.uuid
        assert history.vm_of_backup(cursor, external_id="i-9/2001.01.01.00.00.00") is None


def test_a_run_leads_to_its_newest_backup(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        cursor.execute("UPDATE backup SET run_id = 'nas_backup/r1' WHERE backup_id IN (100, 160) RETURNING external_id")
    with reading(catalog) as cursor:
        found = history.backup_of_run(cursor, run_id="nas_backup/r1")
        assert found is not None
        assert (found.backup_id, history.backup_of_run(cursor, run_id="nas_backup/r2")) == (160, None)


def test_running_copies_tell_speed_and_remaining_time(catalog: Database) -> None:
    with reading(catalog) as cursor:
        (backup,) = running.running(cursor)
    assert (backup.vm, backup.held) == (f"{PREFIX}3-VM", True)
    root, data, logs = backup.copies
    assert (root.share, root.remaining, root.verified) == (1.0, None, True)
    assert data.speed == pytest.approx(11811160064 / 96.5)
    assert data.remaining == pytest.approx((19327352832 - 11811160064) / (11811160064 / 96.5))
    assert (logs.phase, logs.share, logs.speed, logs.remaining) == (None, None, None, None)
    with catalog.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")
        cursor.execute("UPDATE copy_progress SET total = 0, done = 0, phase = 'survey'")
    with reading(catalog) as cursor:
        (backup,) = running.running(cursor)
    assert not backup.held, "its holder has died"
    assert (backup.copies[1].share, backup.copies[1].remaining) == (None, None)


def test_alerts_are_the_worst_first_then_history(catalog: Database) -> None:
    with reading(catalog) as cursor:
        found, total = alerts.alerts(cursor, open_ones=True, limit=500)
        assert len(found) == total == sum(alerts.open_count(cursor).values())
        assert [alert.severity for alert in found] == sorted(alert.severity for alert in found)
        assert all(alert.closed_at is None for alert in found)
        some, of = alerts.alerts(cursor, open_ones=True, severity="critical", limit=1)
        assert (len(some), of) == (1, alerts.open_count(cursor)["critical"])
        mine, _ = alerts.alerts(cursor, open_ones=True, subject=found[0].subject)
        assert {alert.subject for alert in mine} == {found[0].subject}
        assert found[0] in mine
        closed, _ = alerts.alerts(cursor, open_ones=False, limit=500)
        ends = [alert.closed_at for alert in closed if alert.closed_at]
        assert len(ends) == len(closed) > 0
        assert ends == sorted(ends, reverse=True)
        assert alerts.alerts(cursor, open_ones=True, search="100%_")[1] == 0
        told = {delivery.channel for alert in found for delivery in alert.told}
        assert told == {"ops", "chat"}


def test_repositories_come_with_their_samples(catalog: Database) -> None:
    with reading(catalog) as cursor:
        (repository,) = stock.repositories(cursor)
    assert (repository.name, repository.type, repository.vms, len(repository.samples)) == ("nas_one", "nfs", VMS, 121)
    times = [sample.measured_at for sample in repository.samples]
    assert times == sorted(times)


def test_a_view_can_write_nothing(catalog: Database) -> None:
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), reading(catalog) as cursor:
        cursor.execute("UPDATE vm SET title = 'changed'")
    with pytest.raises(CatalogUnreachable, match="statement timeout"), reading(catalog) as cursor:
        cursor.execute("SET LOCAL statement_timeout = '20ms'; SELECT pg_sleep(10)")


# --- drawn ----------------------------------------------------------------------------------------------------

VIEWS = ("/", "/running", "/repositories", "/alerts", "/alerts?closed=true")
API = ("/api/fleet", "/api/compliance", "/api/running", "/api/repositories", "/api/alerts", "/api/alerts?closed=true")


@pytest.mark.parametrize("path", [*VIEWS, *API])
def test_an_empty_catalog_is_shown_as_one(client: TestClient, path: str) -> None:
    assert client.get(f"/nasbackup{path}").status_code == 200
    if path == "/":
        assert "The catalog knows no VM yet." in client.get("/nasbackup/").text
        assert "nas_sla_watch has not looked at the fleet yet" in client.get("/nasbackup/").text


def test_every_view_shows_hostile_names_as_text(catalog: Database, client: TestClient) -> None:
    with catalog.transaction() as cursor:
        cursor.execute("UPDATE vm SET name = %s || vm_id, title = %s, host = %s", (HOSTILE, HOSTILE, HOSTILE))
        cursor.execute("UPDATE backup SET external_id = %s || backup_id || '/x', error = %s", (HOSTILE, HOSTILE))
        cursor.execute("UPDATE alert SET label = %s, text = %s, hint = %s", (HOSTILE, HOSTILE, HOSTILE))
        cursor.execute("UPDATE alert_delivery SET error = %s, channel = %s || channel", (HOSTILE, HOSTILE))
        cursor.execute("UPDATE repository SET name = %s, path = %s, address = %s", (HOSTILE, HOSTILE, HOSTILE))
        cursor.execute("UPDATE drill SET detail = %s, how = %s", (HOSTILE, HOSTILE))
        cursor.execute("UPDATE backup_volume SET name = 'x', source = source || %s WHERE name = 'none'", (HOSTILE,))
        cursor.execute("SELECT uuid, vm_id FROM vm WHERE name LIKE '%%35' ORDER BY vm_id LIMIT 1")
        vm = cursor.fetchall()[0]
        cursor.execute(
            "SELECT external_id FROM backup WHERE vm_id = %s AND status = 'BackedUp' LIMIT 1", (vm["vm_id"],)
        )
        backup = cursor.fetchall()[0]["external_id"]
    addresses = [*VIEWS, f"/vms/{vm['uuid']}", f"/forms/backup?vm={vm['uuid']}"]
    answers = [client.get(f"/nasbackup{address}") for address in addresses]
    answers += [client.get(f"/nasbackup/forms/{form}", params={"backup": backup}) for form in ("restore", "drill")]
    answers.append(client.get("/nasbackup/", params={"q": HOSTILE, "policy": HOSTILE, "host": HOSTILE}))
    answers.append(client.get("/nasbackup/runs", params={"run_id": HOSTILE, "dag_id": HOSTILE}))
    for answer in answers:
        assert answer.status_code == 200, answer.url
        assert "<script>alert" not in answer.text, answer.url
        assert "{{7*7}}" in answer.text or "alert(1)" not in answer.text, "49 would be a template in a template"


def test_a_vm_that_is_not_there_is_not_found(catalog: Database, client: TestClient) -> None:
    unknown = uuid4()
    for path in (f"/vms/{unknown}", f"/forms/backup?vm={unknown}", "/forms/restore?backup=i-9/2001.01.01.00.00.00"):
        answer = client.get(f"/nasbackup{path}")
        assert (answer.status_code, "Not found" in answer.text) == (404, True)


def test_the_prefilled_form_follows_the_policy(catalog: Database, client: TestClient) -> None:
    with reading(catalog) as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}5-VM")
    expected = {
        **{"vm": row.name, "host": "kvm_one", "repository": "nas_one", "quiesce": "off", "allow_encrypted": False},
        **{"compression": "none", "bandwidth": None, "verify": "full"},
    }
    text = client.get(f"/nasbackup/forms/backup?vm={row.uuid}").text
    assert f"data-conf='{json.dumps(expected, sort_keys=True)}'" in text


def test_a_stopped_watch_and_a_broken_fleet_file_are_said_and_the_rest_is_shown(
    catalog: Database, client: TestClient, tmp_path: Path
) -> None:
    assert "has not looked since" not in client.get("/nasbackup/").text
    with catalog.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_one"], now=NOW - timedelta(hours=1))
    assert "nas_sla_watch has not looked since" in client.get("/nasbackup/running").text
    (tmp_path / "fleet.yaml").write_text("zones: [")
    page = client.get("/nasbackup/").text
    assert "fleet.yaml cannot be read." in page
    assert f"{PREFIX}41-VM" in page
    (tmp_path / "fleet.yaml").unlink()
    assert "No such file" in client.get("/nasbackup/").text


def test_json_has_what_the_table_has(catalog: Database, client: TestClient) -> None:
    first = client.get("/nasbackup/api/fleet?per=10&sort=name").json()
    second = client.get("/nasbackup/api/fleet?per=10&sort=name&page=2").json()
    assert (first["total"], len(first["vms"]), len(second["vms"])) == (VMS, 10, 10)
    names = [vm["name"] for vm in first["vms"] + second["vms"]]
    assert names == sorted(f"{PREFIX}{number}-VM" for number in range(1, VMS + 1))[:20]
    vm = client.get(f"/nasbackup/api/vms/{first['vms'][0]['uuid']}?per=3").json()
    assert (vm["vm"]["name"], vm["total"], len(vm["backups"])) == (names[0], EACH, 3)
    assert vm["backups"][0]["generated"] is True
    series = client.get(f"/nasbackup/api/vms/{first['vms'][0]['uuid']}/series").json()
    assert {len(column) for column in series.values()} == {EACH}
    assert series["time"] == sorted(series["time"])
    (repository,) = client.get("/nasbackup/api/repositories").json()["repositories"]
    assert repository["forecast"]["full_in_days"] == pytest.approx(86, abs=6)
    assert client.get("/nasbackup/api/running").json()["running"][0]["copies"][1]["speed"] > 0


def test_prometheus_is_answered_as_well(client: TestClient, catalog: Database) -> None:
    answer = client.get("/nasbackup/metrics")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert "nasbackup_vm_status{" in answer.text
    assert len(client.get("/nasbackup/metrics?volumes=false").text) < len(answer.text)
    assert client.get("/nasbackup/metrics?volumes=perhaps").status_code == 422
