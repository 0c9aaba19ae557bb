"""nas_sla_watch on a worker whose clock is wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import time_machine
from nasbackup.airflow import sla_tasks
from nasbackup.catalog import Database
from nasbackup.fleet import ENVIRONMENT
from nasbackup.sla import LOOK_EVERY

from lab import simulated

FLEET = "zones: {east: {hosts: [kvm_one], repositories: [nas_main]}}\npolicies: {all: {vms: ['*'], rpo: 1 day}}\n"


def test_a_worker_whose_clock_is_ahead_forgets_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    host = {"conn_type": "libvirt", "extra": {"uri": simulated.host(tmp_path, vms=2, size=1 << 20)}}
    monkeypatch.setenv("AIRFLOW_CONN_KVM_ONE", json.dumps(host))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv(ENVIRONMENT, str(file))

    def counted() -> int:
        """Looks at the VMs, over all days."""
        with database.reading() as cursor:
            cursor.execute(
                "SELECT (SELECT sum(looks)::int FROM sla_policy_day) AS looks,"
                " (SELECT max(checked_at) FROM sla_status) AS at"
            )
            (row,) = cursor.fetchall()
        assert row["at"] - datetime.now(UTC) < LOOK_EVERY
        return int(row["looks"])

    assert sla_tasks.look_at_fleet()["vms"] == {"ok": 2}
    before = counted()
    with time_machine.travel(datetime.now(UTC) + timedelta(days=3652), tick=True):
        assert sla_tasks.look_at_fleet()["vms"] == {"ok": 2}
    assert counted() == 2 * before
