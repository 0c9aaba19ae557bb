"""The page's queries against a real PostgreSQL, and every view drawn from them."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
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
from psycopg2.extras import Json

from lab import seed

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
    """A fleet of sixty VMs, as it is now: its watch has looked a moment ago."""
    repository = Repository(name="nas_one", type=RepositoryType.NFS, path="/mnt/nas", address="nas:/backups")
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=str(uuid4()))
    seed.fleet(database, seed.Plan(vms=VMS, each=EACH, now=datetime.now(UTC), prefix=PREFIX, repository="nas_one"))
    return database


@pytest.fixture
def client(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The application over this catalog, for somebody who may do everything."""
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    monkeypatch.setenv("NASBACKUP_FLEET", str(file))
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))

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
        kept = sum(row.status != "critical" for row in gold)
        assert fleet.by_policy(cursor)["gold"] == (len(gold), len(gold), kept)


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


@pytest.mark.parametrize("view", ["running", "fleet", "alerts"])
def test_what_a_live_view_can_focus_has_a_name_that_outlives_its_replacement(
    catalog: Database, client: TestClient, view: str
) -> None:
    """htmx gives the focus back to the element of the same id, and to no other."""
    with catalog.transaction() as cursor:
        cursor.execute("UPDATE backup SET run_id = 'nas_backup/r1' WHERE status = 'BackingUp'")
        cursor.execute(
            "INSERT INTO alert (kind, subject_kind, subject, label, severity, text, hint, opened_at, updated_at)"
            " VALUES ('repository_filling', 'repository', 'nas_one', 'nas_one', 'critical', '', '', now(), now())"
        )
    addresses = {"running": ["running"], "fleet": ["", "?status=ok&q=i", "?q=none"], "alerts": ["alerts", "alerts?q=-"]}
    seen = []
    for address in [*addresses[view], *([f"{view}?q=none"] if view == "alerts" else [])]:
        live = client.get(f"/nasbackup/{address}").text.partition(f'<div id="{view}"')[2].partition("</main>")[0]
        ids = re.findall(r'\bid="([^"]+)"', live)
        assert len(ids) == len(set(ids)), "an id is there once"
        tags = re.findall(r"<(?:a|button|select|summary|textarea|input(?! type=\"hidden\"))\b[^>]*>", live)
        assert [tag for tag in tags if 'id="' not in tag] == []
        seen += tags
    assert len(seen) > 1


def test_a_vm_that_is_not_there_is_not_found(catalog: Database, client: TestClient) -> None:
    unknown = uuid4()
    for path in (f"/vms/{unknown}", f"/forms/backup?vm={unknown}", "/forms/restore?backup=i-9/2001.01.01.00.00.00"):
        answer = client.get(f"/nasbackup{path}")
        assert (answer.status_code, "Not found" in answer.text) == (404, True)


def test_every_bar_and_every_run_leads_to_the_backups_row(catalog: Database, client: TestClient) -> None:
    """On whichever page of the table it is."""
    seed.fleet(
        catalog, seed.Plan(vms=1, each=60, now=datetime.now(UTC), prefix="i-9-", repository="nas_one"), running=False
    )
    with catalog.transaction() as cursor:
        vm = fleet.rows(cursor, wanted=Wanted(search="i-9-1-VM"))[0]
        oldest = history.backups_of(cursor, vm_id=vm.vm_id, limit=1, offset=59)[0].backup_id
        cursor.execute("UPDATE backup SET run_id = 'nas_backup/last month' WHERE backup_id = %s", (oldest,))

    def bars(address: str) -> list[str]:
        return [html.unescape(href) for href in re.findall(r'<a href="([^"]*)" class="bar ', client.get(address).text)]

    few, all_of_them = bars(f"/nasbackup/vms/{vm.uuid}"), bars(f"/nasbackup/vms/{vm.uuid}?chains=200&page=2")
    assert (len(few), len(set(all_of_them))) == (40, 60)
    redirected = client.get("/nasbackup/runs?run_id=last+month")
    assert (redirected.status_code, redirected.headers["location"].endswith(f"#b{oldest}")) == (307, True)
    for href in [*few[::3], all_of_them[-1], redirected.headers["location"]]:
        address, _, fragment = href.partition("#")
        assert f'<tr id="{fragment}" class="marked">' in client.get(address).text, href
    kept = f"/nasbackup/vms/{vm.uuid}?backup={oldest}&page=1"
    assert 'class="marked"' not in client.get(kept).text, "who turns the page sees the page"
    for nonsense in ("0", "first", str(2**63), "1%00"):
        assert client.get(f"/nasbackup/vms/{vm.uuid}?backup={nonsense}").status_code == 422
    gone = client.get(f"/nasbackup/vms/{vm.uuid}?backup={2**63 - 1}")
    assert (gone.status_code, "1\N{EN DASH}25 of 60 backups" in gone.text) == (200, True)


def test_backups_outside_every_chain_can_all_be_drawn(catalog: Database, client: TestClient) -> None:
    with catalog.transaction() as cursor:
        vm = fleet.rows(cursor, wanted=Wanted(search=f"{PREFIX}12-VM"))[0]
        cursor.execute(
            "UPDATE backup SET chain_id = NULL, type = 'FULL', parent_id = NULL, chain_position = 0,"
            " status = 'BackedUp' WHERE vm_id = %s",
            (vm.vm_id,),
        )
    first = client.get(f"/nasbackup/vms/{vm.uuid}").text
    assert first.count('class="bar ') == 4
    (more,) = re.findall(r'<a class="button small" href="([^"]*)">Show all chains</a>', first)
    every = client.get(html.unescape(more).partition("#")[0]).text
    assert (every.count('class="bar '), "Show all chains" in every) == (EACH, False)


def test_the_prefilled_form_follows_the_policy(catalog: Database, client: TestClient) -> None:
    with reading(catalog) as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}5-VM")
    expected = {
        **{"vm": row.name, "host": "kvm_one", "repository": "nas_one", "quiesce": "off", "allow_encrypted": False},
        **{"compression": "none", "bandwidth": None, "verify": "full"},
    }
    text = client.get(f"/nasbackup/forms/backup?vm={row.uuid}").text
    assert f"data-conf='{json.dumps(expected, sort_keys=True)}'" in text


def test_the_prefilled_form_follows_a_policy_that_matches_by_metadata(
    catalog: Database, client: TestClient, tmp_path: Path
) -> None:
    """As every other place does: else the run would be a full of another kind, in another repository."""
    tier = "http://example.org/tier"
    (tmp_path / "fleet.yaml").write_text(f"""
zones:
  default: {{hosts: [kvm_one], repositories: [nas_one, nas_two]}}
policies:
  gold: {{metadata: {{"{tier}": "gold*"}}, repository: nas_two, compression: zstd, bandwidth: 5 MiB/s, quiesce: fail}}
  standard: {{vms: ["*"], quiesce: continue}}
""")
    with catalog.transaction() as cursor:
        cursor.execute("UPDATE vm SET metadata = %s WHERE name = %s", (Json({tier: "gold plus"}), f"{PREFIX}5-VM"))
    with reading(catalog) as cursor:
        gold, other = (everything(cursor, search=f"{PREFIX}{number}-VM")[0] for number in (5, 6))
    asked = {row.name: conf_of(client.get(f"/nasbackup/forms/backup?vm={row.uuid}").text) for row in (gold, other)}
    keys = ("repository", "compression", "bandwidth", "quiesce")
    assert [asked[gold.name][key] for key in keys] == ["nas_two", "zstd", "5 MiB/s", "fail"]
    assert [asked[other.name][key] for key in keys] == ["nas_one", "none", None, "continue"]
    vms = client.get("/nasbackup/api/fleet").json()["vms"]
    assert all("metadata" not in vm for vm in vms), "what others note at a VM is no part of the answer"


def conf_of(form: str) -> dict[str, Any]:
    found = re.search(r"data-conf='([^']*)'", form)
    assert found is not None
    return dict(json.loads(found[1]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("host = 'kvm_old'", f"{PREFIX}5-VM is on kvm_old, which is not in fleet.yaml (any more)"),
        ("defined = false", f"kvm_one does not define {PREFIX}5-VM any more: there is nothing to back up."),
    ],
)
def test_a_backup_that_could_only_be_anothers_is_not_offered(
    catalog: Database, client: TestClient, change: str, sentence: str
) -> None:
    with reading(catalog) as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}5-VM")
    vm, form = f"/nasbackup/vms/{row.uuid}", f"/nasbackup/forms/backup?vm={row.uuid}"
    link = f'href="{form}"'
    assert link in client.get(vm).text
    with catalog.transaction() as cursor:
        cursor.execute(f"UPDATE vm SET {change} WHERE uuid = %s", (row.uuid,))
    assert link not in client.get(vm).text
    assert "/forms/restore?" in client.get(vm).text, "its backups are still there"
    for address in (vm, form):
        assert sentence in client.get(address).text
    assert "<form" not in client.get(form).text


def test_a_stopped_watch_and_a_broken_fleet_file_are_said_and_the_rest_is_shown(
    catalog: Database, client: TestClient, tmp_path: Path
) -> None:
    assert "has not looked since" not in client.get("/nasbackup/").text
    with catalog.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_one"], now=datetime.now(UTC) - timedelta(hours=1))
    assert "nas_sla_watch has not looked since" in client.get("/nasbackup/running").text
    shutil.rmtree(tmp_path / "home")  # no valid one was ever read here
    (tmp_path / "fleet.yaml").write_text("zones: [")
    page = client.get("/nasbackup/").text
    assert "fleet.yaml is wrong." in page
    assert "counts." not in page
    assert f"{PREFIX}41-VM" in page
    (tmp_path / "fleet.yaml").unlink()
    assert "No such file" in client.get("/nasbackup/").text


def test_an_alert_that_nobody_looks_at_any_more_is_not_said_to_be_over(catalog: Database, client: TestClient) -> None:
    with reading(catalog) as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}5-VM")
    with catalog.transaction() as cursor:
        cursor.execute(
            "INSERT INTO alert (kind, subject_kind, subject, label, severity, text, hint, opened_at, updated_at,"
            " closed_at, forgotten) SELECT kind, 'vm', %s, 'x', 'warning', 'A text.', '', at, at, at, kind = 'stale'"
            " FROM (VALUES ('stale', timestamptz '2026-11-02 08:00Z'), ('failing', '2026-11-03 09:00Z')) o (kind, at)",
            (row.uuid,),
        )
    page = client.get("/nasbackup/alerts?closed=true&q=A+text").text
    assert "<small>closed 2026-11-02 08:00: nobody looked at it any more</small>" in page
    assert "<small>until 2026-11-03 09:00</small>" in page
    page = client.get(f"/nasbackup/vms/{row.uuid}").text
    assert "<small>nobody looked at it any more, closed 2026-11-02 08:00, after" in page
    assert "<small>closed 2026-11-03 09:00, after" in page
    found = client.get("/nasbackup/api/alerts?closed=true&q=A+text").json()["alerts"]
    assert [alert["forgotten"] for alert in found] == [False, True]


def test_while_fleet_yaml_is_wrong_the_last_valid_one_counts_on_the_page_as_for_the_runs(
    catalog: Database, client: TestClient, tmp_path: Path
) -> None:
    """Else the form would have no repository, and the backup would go elsewhere."""
    file = tmp_path / "fleet.yaml"
    file.write_text("""
zones:
  default: {hosts: [kvm_one], repositories: [nas_one, nas_two]}
policies:
  gold: {vms: ["*"], repository: nas_two, compression: zstd, quiesce: fail}
""")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    with reading(catalog) as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}5-VM")
    form = f"/nasbackup/forms/backup?vm={row.uuid}"
    asked = conf_of(client.get(form).text)
    assert [asked[key] for key in ("repository", "compression", "quiesce")] == ["nas_two", "zstd", "fail"]
    file.write_text(file.read_text().replace("quiesce: fail", "quiesce: perhaps"))
    page = html.unescape(client.get(form).text)
    assert conf_of(page) == asked
    assert "line 5: policies.gold.quiesce" in page
    assert "Until it is right, the document of 2023-11-14 22:13 UTC counts." in page


def test_a_backup_that_is_dated_in_the_future_keeps_no_promise(catalog: Database) -> None:
    def kept(*, ahead: timedelta) -> int:
        with catalog.transaction() as cursor:
            cursor.execute(
                "UPDATE sla_status SET newest_at = now() + %s"
                " WHERE vm_id = (SELECT min(vm_id) FROM sla_status WHERE policy = 'gold')",
                (ahead,),
            )
            return fleet.by_policy(cursor)["gold"][2]

    now = kept(ahead=timedelta())
    assert [kept(ahead=ahead) for ahead in (timedelta(minutes=4), timedelta(days=1))] == [now, now - 1]


def test_where_nothing_is_promised_nothing_is_said_to_be_kept(catalog: Database, client: TestClient) -> None:
    """A policy without an RPO (docs/fleet.md: ``none``) is looked at like the others, and no look of it is counted."""
    with catalog.transaction() as cursor:
        cursor.execute(
            """
            UPDATE sla_status
               SET policy = 'none', status = 'ok', warn_seconds = NULL, error_seconds = NULL, problems = '[]'
              FROM vm WHERE vm.vm_id = sla_status.vm_id AND name IN (%s, %s);
            DELETE FROM sla_day USING vm WHERE vm.vm_id = sla_day.vm_id AND name IN (%s, %s)
            """,
            (f"{PREFIX}5-VM", f"{PREFIX}6-VM") * 2,
        )
    with reading(catalog) as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}5-VM")
        assert fleet.by_policy(cursor)["none"] == (2, 0, 0)
    fleet_page = client.get(f"/nasbackup/?q={PREFIX}5-VM").text
    (card,) = (card for card in fleet_page.split('<li class="card policy">')[1:] if ">none</a>" in card)
    card = card.partition("</li>")[0]
    assert "2 VMs. No RPO: nothing is promised." in card
    assert not re.search("%|objective|No look", card)
    vm_page = client.get(f"/nasbackup/vms/{row.uuid}").text
    assert "nothing is promised" in vm_page
    for page in (fleet_page.partition('<table class="list fleet">')[2], vm_page.partition('<dl class="facts">')[0]):
        assert "no RPO</span>" in page
        assert "OK</span>" not in page
    for answer in (vm_page, card):
        assert "objective" not in answer
    (none,) = (one for one in client.get("/nasbackup/api/compliance").json()["policies"] if one["name"] == "none")
    assert (none["vms"], none["promised"], none["kept"], none["percent"]) == (2, 0, 0, None)


def test_each_host_of_this_fleet_has_to_be_looked_at(database: Database, client: TestClient, tmp_path: Path) -> None:
    """Also one without VMs; and Airflows that share the catalog don't speak for each other."""
    now = datetime.now(UTC)

    def said() -> str:
        return " ".join(client.get("/nasbackup/").text.partition("What you see may be old.")[2].split())[:120]

    def looked() -> list[float]:
        text = client.get("/nasbackup/metrics").text
        return [float(at) for at in re.findall(r"^nasbackup_last_look_timestamp_seconds (\S+)$", text, flags=re.M)]

    with database.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_another_airflows"], now=now)
    assert "nas_sla_watch has not looked at the fleet yet." in said()
    assert client.get("/nasbackup/api/fleet").json()["last_look"] is None
    assert looked() == []
    with database.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_one"], now=now)
    assert (said(), "the fleet was last judged" in client.get("/nasbackup/").text) == ("", True)

    (tmp_path / "fleet.yaml").write_text(FLEET.replace("[kvm_one]", "[kvm_one, kvm_new]"))
    assert "nas_sla_watch has not looked at kvm_new yet." in said()
    with database.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_new"], now=now - timedelta(hours=1))
    assert "nas_sla_watch has not looked since" in said(), "the other host's watch is alive"
    assert looked() == [pytest.approx((now - timedelta(hours=1)).timestamp())]


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


def test_times_are_utc_wherever_the_server_is(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        (row,) = everything(cursor, search=f"{PREFIX}12-VM")
        newest = history.backups_of(cursor, vm_id=row.vm_id, limit=1)[0].backup_id
        cursor.execute("UPDATE backup SET created_at = '2026-01-31 23:30+00' WHERE backup_id = %s", (newest,))
    there = Database(parameters={**catalog.parameters, "options": "-c TimeZone=Asia/Tokyo"})
    app = create(database=lambda: there, guards=Guards(view=lambda: None, triggers=lambda: frozenset()))
    client = TestClient(app, headers={"Accept": "text/html"})
    page = client.get(f"/vms/{row.uuid}").text
    assert '<time datetime="2026-01-31T23:30:00+00:00">2026-01-31 23:30</time>' in page
    picture = page.partition('<svg class="chain"')[2].partition("</svg>")[0]
    assert (">01-31</text>" in picture, ">02-01</text>" in picture) == (True, False)
    told = client.get(f"/api/vms/{row.uuid}?per=1").json()["backups"][0]["created_at"]
    assert datetime.fromisoformat(told).utcoffset() == timedelta(0)


def test_prometheus_is_answered_as_well(client: TestClient, catalog: Database) -> None:
    answer = client.get("/nasbackup/metrics")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert "nasbackup_vm_status{" in answer.text
    assert len(client.get("/nasbackup/metrics?volumes=false").text) < len(answer.text)
    assert client.get("/nasbackup/metrics?volumes=perhaps").status_code == 422
