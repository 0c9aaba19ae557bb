"""The DAGs that fleet.yaml makes: one per policy with a schedule, in its time zone, with a branch per host."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import time_machine
from nasbackup.airflow import backup_tasks, policy_tasks, pools
from nasbackup.airflow.forms import require_known_keys
from nasbackup.fleet import ENVIRONMENT, load
from nasbackup.model import SeenVm, VmState
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session


def test_each_host_of_the_policys_zones_has_its_branch(dags: Mapping[str, Any]) -> None:
    gold, silver = dags["nas_backup_policy_gold"], dags["nas_backup_policy_silver"]
    one_two = {"window", "kvm_one.due", "kvm_one.back_up", "kvm_two.due", "kvm_two.back_up"}
    assert set(gold.task_dict) == one_two
    assert set(silver.task_dict) == one_two | {"kvm_three.due", "kvm_three.back_up"}
    assert gold.task_dict["kvm_one.due"].upstream_task_ids == {"window"}
    assert gold.task_dict["kvm_one.back_up"].upstream_task_ids == {"kvm_one.due"}


def test_a_policy_without_a_schedule_has_no_dag(dags: Mapping[str, Any]) -> None:
    assert "nas_backup_policy_by-hand" not in dags


def next_run(dag: Any, *, after: datetime | None, now: datetime) -> datetime:
    """When the scheduler would begin the next run, as its timetable says it to the scheduler itself."""
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.timetables.base import DataInterval, TimeRestriction

    timetable = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    with time_machine.travel(now, tick=False):
        info = timetable.next_dagrun_info(
            last_automated_data_interval=None if after is None else DataInterval.exact(after),
            restriction=TimeRestriction(earliest=None, latest=None, catchup=dag.catchup),
        )
    assert info is not None
    found: datetime = info.run_after
    return found


def test_nights_that_were_missed_are_caught_up_once(dags: Mapping[str, Any]) -> None:
    gold = dags["nas_backup_policy_gold"]
    last_run = datetime(2026, 11, 20, 0, 0, tzinfo=UTC)  # 01:00 in Berlin
    now = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
    caught_up = next_run(gold, after=last_run, now=now)
    assert caught_up == datetime(2026, 11, 25, 0, 0, tzinfo=UTC)  # the last of five nights, at once
    following = next_run(gold, after=caught_up, now=now)
    assert following == datetime(2026, 11, 26, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("minutes", [1, 30, 23 * 60])
def test_a_new_policy_waits_for_its_next_time(dags: Mapping[str, Any], minutes: int) -> None:
    now = datetime(2026, 11, 25, 0, 0, tzinfo=UTC) + timedelta(minutes=minutes)
    assert next_run(dags["nas_backup_policy_gold"], after=None, now=now) == datetime(2026, 11, 26, 0, 0, tzinfo=UTC)


def test_the_schedule_is_that_of_the_walls_clock(dags: Mapping[str, Any]) -> None:
    gold = dags["nas_backup_policy_gold"]
    summer = datetime(2026, 7, 1, 12, tzinfo=UTC)
    run = next_run(gold, after=summer - timedelta(days=1), now=summer)
    assert run == datetime(2026, 6, 30, 23, tzinfo=UTC)


# --- what a policy's runs are told ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({}, {"compression": "none", "bandwidth": None, "verify": "full"}),
        (
            {"compression": "zstd", "bandwidth": "204800 KiB/s", "verify": {"level": "structure"}},
            {"compression": "zstd", "bandwidth": "200 MiB/s", "verify": "structure"},
        ),
        ({"bandwidth": "999999 GiB/s"}, {"bandwidth": "999999 GiB/s"}),
        ({"bandwidth": "1 KiB/s", "quiesce": "continue"}, {"bandwidth": "1 KiB/s", "quiesce": "continue"}),
    ],
)
def test_what_a_policy_says_fits_the_form_of_nas_backup(
    dags: Mapping[str, Any], tmp_path: Path, written: Mapping[str, Any], told: Mapping[str, Any]
) -> None:
    place = {"hosts": ["kvm_one"], "repositories": ["nas_main"]}
    file = tmp_path / "fleet.yaml"
    file.write_text(json.dumps({"zones": {"east": place}, "policies": {"p": {"vms": ["*"], **written}}}))
    vm = SeenVm(name="i-2-1-VM", uuid="0" * 32, host="kvm_one", state=VmState.RUNNING)
    conf = policy_tasks._conf(vm, policy=load(file).policy("p"), repository="nas_main", mode="auto")
    params = dags["nas_backup"].params
    require_known_keys(conf, form=params)
    merged = copy.deepcopy(params)
    merged.update(conf)
    filled = dict(merged.validate())
    assert {name: filled[name] for name in conf} == conf
    assert {name: conf[name] for name in told} == told
    as_bytes = load(file).policy("p").bandwidth
    assert backup_tasks.bandwidth(filled["bandwidth"]) == as_bytes, "the speed arrives as it was written"


# --- pools ----------------------------------------------------------------------------------------------------


@pytest.fixture
def session() -> Any:
    """A database of Airflow's own making, with the table of pools only."""
    from airflow.models.pool import Pool

    engine = create_engine("sqlite://")
    Pool.__table__.create(engine)  # type: ignore[attr-defined]
    with Session(engine) as session:
        yield session


@pytest.fixture
def assign(session: Any, fleet_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the hook makes of a task instance; returns its pool."""
    monkeypatch.setenv(ENVIRONMENT, str(fleet_file))
    monkeypatch.setattr("sqlalchemy.orm.object_session", lambda _instance: session)

    def call(dag_id: str, task_id: str, conf: Any = None) -> str:
        instance = SimpleNamespace(dag_id=dag_id, task_id=task_id, pool="default_pool")
        pools.task_instance_mutation_hook(task_instance=instance, dag_run=SimpleNamespace(conf=conf))
        return instance.pool

    return call


def made(session: Any) -> dict[str, tuple[int, bool]]:
    from airflow.models.pool import Pool

    return {pool.pool: (pool.slots, pool.include_deferred) for pool in session.scalars(select(Pool))}


def test_what_moves_data_waits_for_its_repository(assign: Any, session: Any) -> None:
    assert assign("nas_backup", "copy", {"host": "kvm_one", "repository": "nas_spare"}) == "nas_repository_nas_spare"
    assert assign("nas_backup", "verify", {"host": "kvm_one", "repository": None}) == "nas_repository_nas_main"
    assert assign("nas_backup", "copy", {}) == "nas_repository_nas_main"
    assert assign("nas_backup", "record", {"host": "kvm_one"}) == "default_pool"
    assert made(session) == {"nas_repository_nas_spare": (8, False), "nas_repository_nas_main": (8, False)}


def test_who_begins_a_backup_holds_a_slot_of_its_host_while_it_waits(assign: Any, session: Any) -> None:
    assert assign("nas_backup_policy_silver", "kvm_three.back_up") == "nas_host_kvm.three"
    assert assign("nas_backup_policy_silver", "kvm_three.due") == "default_pool"
    assert assign("nas_backup_policy_silver", "gone.back_up") == "default_pool"
    assert made(session) == {"nas_host_kvm.three": (2, True)}


def test_a_pools_size_is_the_operators(assign: Any, session: Any) -> None:
    from airflow.models.pool import Pool

    session.add(Pool(pool="nas_host_kvm_one", slots=1, include_deferred=True, description="ours"))
    session.flush()
    assert assign("nas_backup_policy_gold", "kvm_one.back_up") == "nas_host_kvm_one"
    assert made(session) == {"nas_host_kvm_one": (1, True)}


def test_the_hook_never_stops_the_scheduler(assign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/nowhere.yaml")
    assert assign("nas_backup", "copy", {"host": "kvm_one"}) == "default_pool"
    instance = SimpleNamespace(dag_id="nas_backup", task_id="copy", pool="default_pool")
    pools.task_instance_mutation_hook(task_instance=instance, dag_run=None)
    assert instance.pool == "default_pool"


def test_other_dags_are_left_alone(assign: Any) -> None:
    assert assign("somebody_elses", "copy", {"host": "kvm_one"}) == "default_pool"
