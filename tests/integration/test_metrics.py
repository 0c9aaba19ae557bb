"""Metrics: what Prometheus reads of the catalog, what Airflow's metrics carry, and what the examples build on."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from nasbackup.airflow import alert_tasks, measures
from nasbackup.catalog import Database, looks
from nasbackup.catalog.database import Cursor
from nasbackup.catalog.measurements import measure
from nasbackup.model import BackupType, BackupVolume, VolumeReason
from nasbackup.sla.measured import Measurements
from nasbackup.steps.alerts import settle
from nasbackup.steps.metrics import CONTENT_TYPE, render
from prometheus_client.parser import text_string_to_metric_families

from tests.alert_book import CHANNELS, EAST, EVERYTHING, finding
from tests.integration.test_cli import answer, nasbackup, refused

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "docs" / "monitoring"
PROMTOOL = ROOT / "var" / "promtool"
HOSTILE = 'i-2-"\\\n{evil="1"} 42-VM'
NOW = datetime(2026, 1, 31, 23, tzinfo=UTC)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def fleet_of_three(database: Database) -> Database:
    """One with a chain of two in one repository and a full in another, one never backed up, one without a policy."""
    with database.transaction() as cursor:
        cursor.execute(
            """
            INSERT INTO vm (uuid, name, host) VALUES (%(east)s, %(hostile)s, 'kvm_one'),
                   ('5b1f2c1e-0000-4000-8000-000000000002', 'i-2-2-VM', 'kvm_one'),
                   ('5b1f2c1e-0000-4000-8000-000000000003', 'i-2-3-VM', 'kvm_one');
            INSERT INTO repository (name, uuid, type, path) VALUES ('nas_one', gen_random_uuid(), 'local', '/mnt/1'),
                   ('nas_two', gen_random_uuid(), 'local', '/mnt/2');
            INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_id,
                                chain_position, parent_id, host, vm_state, request, run_id, lease_token, created_at,
                                recorded_at, size)
            SELECT 1, r, 'x/' || n, t, s, 'no_active_checkpoint', '', gen_random_uuid(), p, parent, 'kvm_one',
                   'running', '{}', 'run', 1, %(now)s - make_interval(hours => ago),
                   %(now)s - make_interval(hours => ago) + interval '90 s', size
              FROM (VALUES (1, 1, 'FULL', 'BackedUp', 0, NULL::bigint, 24, 1000),
                           (2, 1, 'INCREMENTAL', 'BackedUp', 1, 1, 12, 200),
                           (3, 2, 'FULL', 'BackedUp', 0, NULL, 6, 1100),
                           (4, 1, 'FULL', 'Failed', 0, NULL, 1, NULL)) AS b (n, r, t, s, p, parent, ago, size)
             ORDER BY n;
            INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,
                                       reason, backing, bytes_read, copy_seconds, verified_at)
            SELECT backup_id, o, 'ROOT-' || o, '/images/' || o, 'vda', 'qcow2', o || '.qcow2', 1 << 30, type,
                   'full_backup', CASE WHEN type = 'INCREMENTAL' THEN '../x' END, 100 * o, 2.5 * o,
                   CASE WHEN backup_id <> 3 THEN %(now)s END
              FROM backup CROSS JOIN generate_series(0, 1) AS o;
            INSERT INTO sla_status (vm_id, policy, zone, status, checked_at, newest_at, verified_at, drilled_at,
                                    warn_seconds, error_seconds, backups, size) VALUES
                   (1, 'gold', 'east', 'ok', %(now)s, %(now)s - interval '6 hours', %(now)s, %(now)s, 3600, 7200, 3,
                    2300),
                   (2, 'gold', 'east', 'critical', %(now)s, NULL, NULL, NULL, 3600, 7200, 0, 0),
                   (3, NULL, 'east', 'unprotected', %(now)s, NULL, NULL, NULL, NULL, NULL, 0, 0);
            INSERT INTO sla_look (host, looked_at) VALUES ('kvm_one', %(now)s),
                   ('kvm_gone', %(now)s - interval '25 hours');
            INSERT INTO sla_policy_day (day, policy, looks, compliant) VALUES ('2026-01-31', 'gold', 10, 5),
                   ('2026-01-30', 'gold', 10, 10), ('2026-01-20', 'gold', 20, 20), ('2025-12-01', 'gold', 99, 0);
            INSERT INTO drill (vm_id, external_id, started_at, finished_at, result, rto_seconds, how) VALUES
                   (1, 'x/1', %(now)s - interval '2 days', %(now)s - interval '2 days', 'ok', 41.5, 'agent'),
                   (1, 'x/2', %(now)s - interval '1 day', %(now)s - interval '1 day', 'failed', NULL, 'agent');
            INSERT INTO capacity_sample (repository_id, measured_at, total, free, backups) VALUES
                   (1, %(now)s - interval '2 days', 1000000, 900000, 1), (1, %(now)s, 1000000, 700000, 1200);
            """,
            {"east": EAST.key, "hostile": HOSTILE, "now": NOW},
        )
    settle(database, findings=[finding()], looked_at=EVERYTHING, channels=CHANNELS, now=NOW)
    return database


def series(text: bytes) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        assert family.type == "gauge"
        for sample in family.samples:
            key = (sample.name.removeprefix("nasbackup_"), tuple(sorted(sample.labels.items())))
            assert key not in found, "a series is there once"
            found[key] = sample.value
    return found


def of(found: Series, name: str) -> dict[str, float]:
    """The series of a metric, by the labels that tell them apart."""
    apart = ("status", "repository", "volume", "window", "severity", "channel", "type", "vm")
    return {
        " ".join(dict(labels)[key] for key in apart if key in dict(labels)): value
        for (metric, labels), value in found.items()
        if metric == name
    }


def test_every_number_is_the_catalogs(fleet_of_three: Database) -> None:
    found = series(render(fleet_of_three, now=NOW))
    now = NOW.timestamp()
    vm = (("policy", "gold"), ("uuid", EAST.key), ("vm", HOSTILE), ("zone", "east"))
    assert found["vm_newest_backup_timestamp_seconds", vm] == now - 6 * 3600, "a name comes through as it is"
    expected = {
        "last_look_timestamp_seconds": {"": now},
        "vms": {"ok": 1, "critical": 1, "unprotected": 1},
        "vm_status": {f"ok {HOSTILE}": 1, "critical i-2-2-VM": 1, "unprotected i-2-3-VM": 1},
        "vm_newest_backup_timestamp_seconds": {HOSTILE: now - 6 * 3600},
        "vm_rpo_seconds": {HOSTILE: 7200, "i-2-2-VM": 7200},
        "vm_rpo_warning_seconds": {HOSTILE: 3600, "i-2-2-VM": 3600},
        "vm_backups": {HOSTILE: 3, "i-2-2-VM": 0, "i-2-3-VM": 0},
        "vm_backups_size_bytes": {HOSTILE: 2300, "i-2-2-VM": 0, "i-2-3-VM": 0},
        "verify_timestamp_seconds": {HOSTILE: now},
        "drill_success_timestamp_seconds": {HOSTILE: now},
        "backup_size_bytes": {f"nas_one {HOSTILE}": 200, f"nas_two {HOSTILE}": 1100},
        "backup_duration_seconds": {f"nas_one {HOSTILE}": 90, f"nas_two {HOSTILE}": 90},
        "backup_incremental": {f"nas_one {HOSTILE}": 1, f"nas_two {HOSTILE}": 0},
        "backup_changed_bytes": {f"nas_one {HOSTILE}": 100},
        "verify_success": {f"nas_one {HOSTILE}": 1, f"nas_two {HOSTILE}": 0},
        "volume_read_bytes": {f"nas_{r} ROOT-{o} {HOSTILE}": 100 * o for r in ("one", "two") for o in (0, 1)},
        "volume_virtual_size_bytes": {f"nas_{r} ROOT-{o} {HOSTILE}": 1 << 30 for r in ("one", "two") for o in (0, 1)},
        "volume_copy_duration_seconds": {
            f"nas_{r} ROOT-{o} {HOSTILE}": 2.5 * o for r in ("one", "two") for o in (0, 1)
        },
        "drill_success": {HOSTILE: 0},
        "drill_timestamp_seconds": {HOSTILE: now - 86400},
        "drill_rto_seconds": {HOSTILE: 41.5},
        "compliance_ratio": {"1d": 0.5, "7d": 0.75, "30d": 0.875},
        "alerts_open": {"warning": 1, "critical": 0},
        "alert_deliveries_pending": {"mail": 1, "east_chat": 1},
        "backups": {
            "BackedUp nas_one FULL": 1,
            "BackedUp nas_one INCREMENTAL": 1,
            "BackedUp nas_two FULL": 1,
            "Failed nas_one FULL": 1,
        },
        "repository_size_bytes": {"nas_one": 1000000},
        "repository_free_bytes": {"nas_one": 700000},
        "repository_backups_size_bytes": {"nas_one": 1200},
        "repository_growth_bytes_per_second": {"nas_one": 100000 / 86400},
        "repository_full_in_seconds": {"nas_one": 7 * 86400},
        "repository_measured_timestamp_seconds": {"nas_one": now},
    }
    shown = {name: of(found, name) for name in {name for name, _ in found}}
    assert {name: pytest.approx(values) for name, values in expected.items()} == shown
    fewer = {name for name, _ in series(render(fleet_of_three, now=NOW, volumes=False))}
    assert set(expected) - fewer == {name for name in expected if name.startswith("volume_")}


def test_a_look_is_one_at_every_host_of_the_fleet(fleet_of_three: Database) -> None:
    """Without fleet.yaml: at every host that somebody looks at. (kvm_gone is in nobody's fleet any more.)"""

    def looked(hosts: list[str] | None) -> dict[str, float]:
        return of(series(render(fleet_of_three, now=NOW, hosts=hosts)), "last_look_timestamp_seconds")

    with fleet_of_three.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_two"], now=NOW - timedelta(minutes=55))
        looks.note(cursor, hosts=["kvm_gone"], now=NOW - timedelta(hours=1))
    assert looked(None) == {"": (NOW - timedelta(minutes=55)).timestamp()}
    assert looked(["kvm_one"]) == {"": NOW.timestamp()}
    assert looked(["kvm_one", "kvm_two"]) == {"": (NOW - timedelta(minutes=55)).timestamp()}
    assert looked(["kvm_one", "kvm_new"]) == {}, "absent() tells of it"


class Counting(Cursor):
    statements = 0

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        type(self).statements += 1
        return super().execute(*args, **kwargs)


def test_a_fleet_of_thousands_takes_as_many_statements_as_one_of_three(fleet_of_three: Database) -> None:
    def statements() -> tuple[int, Measurements]:
        Counting.statements = 0
        with (
            fleet_of_three.transaction() as cursor,
            cursor.connection.cursor(cursor_factory=Counting) as counting,
        ):
            found = measure(counting, now=NOW)
        return Counting.statements, found

    few, _ = statements()
    with fleet_of_three.transaction() as cursor:
        cursor.execute(
            """
            INSERT INTO vm (uuid, name, host)
            SELECT gen_random_uuid(), 'i-3-' || n, 'kvm_one' FROM generate_series(1, 3000) AS n;
            INSERT INTO sla_status (vm_id, policy, zone, status, checked_at)
            SELECT vm_id, 'gold', 'west', 'ok', now() FROM vm WHERE name LIKE 'i-3-%';
            INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_position,
                                host, vm_state, request, run_id, lease_token, created_at, recorded_at, size)
            SELECT vm_id, 1, name || '/1', 'FULL', 'BackedUp', 'no_active_checkpoint', '', 0, host, 'running', '{}',
                   'run', 1, now(), now(), 7 FROM vm WHERE name LIKE 'i-3-%';
            INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,
                                       reason)
            SELECT backup_id, 0, 'ROOT', '/r', 'vda', 'qcow2', 'r.qcow2', 1, 'FULL', 'full_backup'
              FROM backup WHERE size = 7;
            """
        )
    many, found = statements()
    assert (len(found.vms), len(found.last)) == (3003, 3002)
    assert many == few


def test_an_empty_catalog_has_few_numbers_and_no_error(database: Database) -> None:
    found = series(render(database, now=NOW))
    assert of(found, "alerts_open") == {"warning": 0, "critical": 0}
    assert {name for name, _ in found} == {"alerts_open"}
    promtool("check", "metrics", given=render(database, now=NOW))


def promtool(*arguments: str, given: bytes = b"") -> str:
    assert PROMTOOL.exists(), "scripts/test fetches it (ensure_promtool in scripts/lib/packages.sh)"
    done = subprocess.run([PROMTOOL, *arguments], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode() + done.stderr.decode()


def test_prometheus_takes_them_and_finds_nothing_to_criticise(fleet_of_three: Database) -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert promtool("check", "metrics", given=render(fleet_of_three, now=NOW)) == ""


def test_the_example_rules_are_valid_and_do_what_they_say() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(MONITORING / "nasbackup.rules.yaml"))
    assert "SUCCESS" in promtool("test", "rules", str(MONITORING / "nasbackup.rules.test.yaml"))
    rules = yaml.safe_load((MONITORING / "nasbackup.rules.yaml").read_text())
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tested = set(re.findall(r"alertname: (\w+)", (MONITORING / "nasbackup.rules.test.yaml").read_text()))
    assert names == tested


def test_the_examples_and_the_documentation_name_what_there_is(fleet_of_three: Database) -> None:
    there = {f"nasbackup_{name}" for name, _ in series(render(fleet_of_three, now=NOW))}
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 20
    used = set(re.findall(r"\bnasbackup_\w+", " ".join(expressions)))
    assert used <= there
    rules = (MONITORING / "nasbackup.rules.yaml").read_text()
    assert set(re.findall(r"\bnasbackup_\w+", rules)) <= there
    documented = set(re.findall(r"`(nasbackup_\w+)", (ROOT / "docs" / "metrics.md").read_text()))
    assert documented == there
    sources = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel}
    assert sources == {"${datasource}"}


def test_the_command_prints_them_or_writes_them_in_one_piece(
    fleet_of_three: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASBACKUP_FLEET", str(tmp_path / "no fleet.yaml"))
    with fleet_of_three.transaction() as cursor:
        cursor.execute("TRUNCATE sla_policy_day")  # what it says depends on the day
    assert nasbackup(fleet_of_three, "metrics").stdout.encode() == render(fleet_of_three, now=NOW)
    file = tmp_path / "nasbackup.prom"
    file.write_text("what was there before\n")
    file.chmod(0o600)
    assert nasbackup(fleet_of_three, "metrics", "--no-volumes", "--output", str(file)).stdout == ""
    assert file.read_bytes() == render(fleet_of_three, now=NOW, volumes=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["nasbackup.prom"]
    assert "could not be written" in refused(fleet_of_three, "metrics", "--output", str(tmp_path / "no" / "x.prom"))

    (tmp_path / "fleet.yaml").write_text("zones: {default: {hosts: [kvm_new], repositories: [nas_one]}}")
    monkeypatch.setenv("NASBACKUP_FLEET", str(tmp_path / "fleet.yaml"))
    printed = nasbackup(fleet_of_three, "metrics").stdout.encode()
    assert printed == render(fleet_of_three, now=NOW, hosts=["kvm_new"])
    assert "last_look_timestamp_seconds" not in {name for name, _ in series(printed)}


def test_alerts_as_people_and_programs_see_them(fleet_of_three: Database) -> None:
    (alert,) = answer(fleet_of_three, "alerts")
    assert (alert["kind"], alert["severity"], alert["subject"]) == ("stale", "warning", EAST.key)
    assert (alert["closed_at"], alert["undelivered"]) == (None, {"mail": None, "east_chat": None})
    with fleet_of_three.transaction() as cursor:
        cursor.execute("UPDATE alert_delivery SET tries = 1, error = 'it is away' WHERE channel = 'mail'")
    table = nasbackup(fleet_of_three, "alerts").stdout
    assert "Look at the VM's last runs. (not told yet: mail: it is away)" in " ".join(table.split())
    settle(fleet_of_three, findings=[], looked_at=EVERYTHING, channels=CHANNELS, now=NOW + timedelta(minutes=5))
    assert answer(fleet_of_three, "alerts") == []
    assert nasbackup(fleet_of_three, "alerts").stdout == "No alert is open.\n"
    assert answer(fleet_of_three, "alerts", "--all")[0]["closed_at"] == "2026-01-31T23:05:00+00:00"
    assert "It was over on 2026-01-31 23:05." in " ".join(nasbackup(fleet_of_three, "alerts", "--all").stdout.split())


# --- Airflow's metrics ----------------------------------------------------------------------------------------


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A real socket that Airflow's StatsD client is configured to send to."""
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics import stats_utils

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        for key, value in {
            "STATSD_ON": "True",
            "STATSD_HOST": "127.0.0.1",
            "STATSD_PORT": str(listener.getsockname()[1]),
        }.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__{key}", value)
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
        yield listener
        monkeypatch.undo()
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)


def received(listener: socket.socket, *, count: int) -> dict[str, str]:
    lines = [listener.recv(2048).decode() for _ in range(count)]
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(2048)
    listener.settimeout(10)
    return dict(line.removeprefix("airflow.").split(":", 1) for line in lines)


def test_the_fleet_through_airflows_metrics(
    fleet_of_three: Database, statsd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(fleet_of_three.parameters["dsn"]))
    with fleet_of_three.transaction() as cursor:
        cursor.execute(
            "TRUNCATE sla_policy_day; INSERT INTO sla_policy_day VALUES (%s, 'gold.plated:1|g', 10, 5)",
            (datetime.now(UTC).date() + timedelta(days=1),),  # so that midnight may come meanwhile
        )
    alert_tasks.emit()
    assert received(statsd, count=12) == {
        "nasbackup.vms.ok": "1|g",
        "nasbackup.vms.warning": "0|g",
        "nasbackup.vms.critical": "1|g",
        "nasbackup.vms.unprotected": "1|g",
        "nasbackup.alerts_open.warning": "1|g",
        "nasbackup.alerts_open.critical": "0|g",
        "nasbackup.repository.nas_one.size_bytes": "1000000|g",
        "nasbackup.repository.nas_one.free_bytes": "700000|g",
        "nasbackup.repository.nas_one.full_in_days": "7.0|g",
        **{f"nasbackup.compliance.gold_plated_1_g.{days}d": "0.5|g" for days in (1, 7, 30)},
    }


def test_the_time_of_a_copy_through_airflows_metrics(statsd: socket.socket) -> None:
    measures.copied(
        BackupVolume(
            name="ROOT-1",
            source="/r",
            target="vda",
            format="qcow2",
            file="root.qcow2",
            virtual_size=1,
            type=BackupType.INCREMENTAL,
            reason=VolumeReason.INCREMENTAL,
            backing="../x",
            bytes_read=4096,
            bytes_written=2048,
            copy_seconds=1.5,
        )
    )
    assert received(statsd, count=3) == {
        "nasbackup.copy.incremental": "1500.000000|ms",
        "nasbackup.copy.bytes_read": "4096|c",
        "nasbackup.copy.bytes_written": "2048|c",
    }


def test_the_moment_is_the_one_that_is_asked_for(fleet_of_three: Database) -> None:
    """Compliance is that of the days before it."""
    assert of(series(render(fleet_of_three, now=NOW + timedelta(days=1))), "compliance_ratio") == {
        "7d": 0.75,
        "30d": 0.875,
    }
