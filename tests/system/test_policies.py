"""A policy's schedule fires in a real scheduler: who is due is backed up, who is not is left alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nasbackup.model import BackupStatus

from lab import vm as lab
from tests.system.conftest import Plant

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MIB = 1 << 20


def policy(plant: Plant, file: Path, *, name: str, **fields: Any) -> str:
    """Add a policy to fleet.yaml, before all others; returns its DAG's id once Airflow, not restarted, has seen it."""
    lines = [f"  {name}:", *(f"    {key}: {value}" for key, value in fields.items())]
    file.write_text(file.read_text().replace("policies:\n", "policies:\n" + "\n".join(lines) + "\n", 1))
    dag_id = f"nas_backup_policy_{name}"
    plant.airflow.wait_for_dag(dag_id)
    return dag_id


def remove(plant: Plant, dag_id: str) -> None:
    plant.airflow.request("PATCH", f"/dags/{dag_id}", json={"is_paused": True})


def first_run(plant: Plant, dag_id: str, *, timeout: float = 120) -> str:
    """The run that the schedule has begun."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        runs = plant.airflow.request("GET", f"/dags/{dag_id}/dagRuns", params={"limit": 10})["dag_runs"]
        if runs:
            assert runs[-1]["run_type"] == "scheduled"
            return str(runs[-1]["dag_run_id"])
        time.sleep(1)
    raise AssertionError(f"{dag_id} has not run within {timeout:g} s")


def test_a_schedule_begins_the_backups_of_its_vms(
    plant: Plant, make_vm: Callable[..., lab.LabVm], fleet_file: Path
) -> None:
    due = [make_vm("due-1", 8 * MIB), make_vm("due-2", 8 * MIB, 4 * MIB)]
    other = make_vm("other", 8 * MIB)
    due[0].guest_io("vda", f"write -P 7 1M {MIB}")
    soon = time.gmtime(time.time() + 75)  # by then Airflow knows it; and it is once
    dag_id = policy(
        plant,
        fleet_file,
        name=f"soon-{os.getpid()}",
        vms=f'["i-3-{os.getpid()}-due-*"]',
        schedule=f'"{soon.tm_min} {soon.tm_hour} * * *"',
        rpo="1 day",
    )
    try:
        run_id = first_run(plant, dag_id, timeout=150)
        assert plant.airflow.wait(dag_id, run_id, timeout=300) == "success", plant.airflow.tasks(dag_id, run_id)
    finally:
        remove(plant, dag_id)
    tasks = {task.title: task.state for task in plant.airflow.tasks(dag_id, run_id)}
    assert tasks == {
        "window": "success",
        "kvm_test.due": "success",
        **{f"kvm_test.back_up[{machine.name}]": "success" for machine in due},
    }
    for machine in due:
        (backup,) = plant.backups_of(machine.name)
        assert backup.status is BackupStatus.BACKED_UP
        plant.assert_nothing_is_left(machine)
    assert plant.backups_of(other.name) == []
    pools = {pool["name"]: pool for pool in plant.airflow.request("GET", "/pools")["pools"]}
    assert (pools["nas_host_kvm_test"]["slots"], pools["nas_host_kvm_test"]["include_deferred"]) == (2, True)
    assert pools["nas_repository_nas_test"]["slots"] == 8
    for task, pool in {"copy": "nas_repository_nas_test", "record": "default_pool"}.items():
        assert pool_of(plant, due[0], run=f"{dag_id}__{run_id}", task=task) == pool
    where = "hosts: [kvm_test]"
    fleet_file.write_text(fleet_file.read_text().replace(where, f"{where}\n    host_slots: 3\n    repository_slots: 9"))
    by_hand = plant.airflow.trigger("nas_backup", conf={"vm": other.name, "host": "kvm_test"})
    assert plant.airflow.wait("nas_backup", by_hand, timeout=120) == "success"
    pools = {pool["name"]: pool["slots"] for pool in plant.airflow.request("GET", "/pools")["pools"]}
    assert (pools["nas_host_kvm_test"], pools["nas_repository_nas_test"]) == (3, 9), "without a restart"


def pool_of(plant: Plant, machine: lab.LabVm, *, run: str, task: str) -> str:
    found = plant.airflow.request("GET", f"/dags/nas_backup/dagRuns/{run}__{machine.uuid}/taskInstances")
    return str(next(entry["pool"] for entry in found["task_instances"] if entry["task_id"] == task))


def test_a_blackout_holds_a_run_and_a_person_can_override_it(
    plant: Plant, make_vm: Callable[..., lab.LabVm], fleet_file: Path
) -> None:
    machine = make_vm("night", 8 * MIB)
    # All of every day but the minute before last: longer than this test.
    now = time.gmtime()
    start = f"{(now.tm_hour - 1) % 24:02}:00"
    end = f"{(now.tm_hour - 2) % 24:02}:00"
    dag_id = policy(
        plant,
        fleet_file,
        name=f"nightly-{os.getpid()}",
        vms=f'["{machine.name}"]',
        schedule='"0 3 1 1 *"',
        blackout=f'["{start}-{end}"]',
    )
    try:
        held = plant.airflow.trigger(dag_id, conf={})
        deadline = time.monotonic() + 90
        while [t.state for t in plant.airflow.tasks(dag_id, held) if t.task_id == "window"] != ["up_for_reschedule"]:
            assert time.monotonic() < deadline, plant.airflow.tasks(dag_id, held)
            time.sleep(1)
        assert plant.backups_of(machine.name) == []
        plant.airflow.request("PATCH", f"/dags/{dag_id}/dagRuns/{held}", json={"state": "failed"})
        dry = plant.airflow.trigger(dag_id, conf={"ignore_blackout": True, "dry_run": True})
        assert plant.airflow.wait(dag_id, dry, timeout=120) == "success"
        assert f"{machine.name} is due" in plant.airflow.log(dag_id, dry, "kvm_test.due")
        assert plant.backups_of(machine.name) == []
        wrong = plant.airflow.trigger(dag_id, conf={"ignore_blackout": True, "vm": [machine.name]})
        assert plant.airflow.wait(dag_id, wrong, timeout=120) == "failed"
        assert "Unknown key in the run's conf: 'vm'" in plant.airflow.log(dag_id, wrong, "kvm_test.due")
        forced = plant.airflow.trigger(dag_id, conf={"ignore_blackout": True, "mode": "full"})
        assert plant.airflow.wait(dag_id, forced, timeout=240) == "success"
    finally:
        remove(plant, dag_id)
    (backup,) = plant.backups_of(machine.name)
    assert (backup.status, backup.reason) == (BackupStatus.BACKED_UP, "forced_full")
