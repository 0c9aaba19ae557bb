"""The DAGs that fleet.yaml makes: one per policy with a schedule, in its time zone, with a branch per host."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pendulum
import pytest
import time_machine
from nasbackup.airflow import backup_tasks, mapped, policy_tasks
from nasbackup.airflow.forms import require_known_keys
from nasbackup.catalog import Database, inventory, looks, repositories
from nasbackup.fleet import ENVIRONMENT, load
from nasbackup.hypervisor import connect
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.model import Host, Repository, RepositoryType, SeenVm, VmState

from lab import simulated


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
            last_automated_data_interval=None if after is None else DataInterval.exact(pendulum.instance(after)),
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


@pytest.mark.parametrize("minutes", [4, 30, 23 * 60])
def test_a_new_policy_waits_for_its_next_time(dags: Mapping[str, Any], minutes: int) -> None:
    now = datetime(2026, 11, 25, 0, 0, tzinfo=UTC) + timedelta(minutes=minutes)
    assert next_run(dags["nas_backup_policy_gold"], after=None, now=now) == datetime(2026, 11, 26, 0, 0, tzinfo=UTC)


def test_a_first_time_is_not_lost_to_a_parse_of_the_file_just_after_it(dags: Mapping[str, Any]) -> None:
    """Nor to a scheduler that is restarted just then."""
    night = datetime(2026, 11, 25, 0, 0, tzinfo=UTC)
    for seconds in (30, 150):
        assert next_run(dags["nas_backup_policy_gold"], after=None, now=night + timedelta(seconds=seconds)) == night


@pytest.mark.parametrize(
    ("dag_id", "interval"),
    [
        ("nas_reconcile", timedelta(hours=1)),
        ("nas_retention", timedelta(days=1)),
        ("nas_restore_drill", timedelta(weeks=1)),
    ],
)
def test_who_unpauses_what_acts_begins_nothing_at_once(
    dags: Mapping[str, Any], dag_id: str, interval: timedelta
) -> None:
    sunday = datetime(2026, 11, 29, 0, 0, tzinfo=UTC)
    assert next_run(dags[dag_id], after=None, now=sunday + timedelta(minutes=2)) == sunday + interval
    assert next_run(dags[dag_id], after=sunday, now=sunday + timedelta(minutes=2)) == sunday + interval


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


# --- how many at once -----------------------------------------------------------------------------------------


def test_one_run_begins_as_many_as_airflow_is_configured_to_map(
    database: Database,
    fleet_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = {"conn_type": "libvirt", "extra": {"uri": simulated.host(tmp_path, vms=5, size=1 << 20)}}
    monkeypatch.setenv("AIRFLOW_CONN_KVM_ONE", json.dumps(host))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv(ENVIRONMENT, str(fleet_file))
    asked = {"policy": "silver", "host": "kvm_one", "conf": {}, "run": "run"}
    params = {"vms": None, "dry_run": False, "mode": "auto"}
    everyone = [f"i-9-{number}-VM" for number in range(1, 6)]
    assert [due["vm"] for due in policy_tasks.due_vms(**asked, params=params)] == everyone
    assert "left for the next run" not in caplog.text
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    assert [due["vm"] for due in policy_tasks.due_vms(**asked, params=params)] == everyone[:2]
    assert (
        "5 VMs are due: 3 of them are left for the next run. [core] max_map_length of Airflow is 2" in caplog.messages
    )


# --- which of them, and in which order ------------------------------------------------------------------------


def test_a_stopped_definition_that_a_migration_left_behind_is_left_out(
    database: Database,
    fleet_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The VM went from kvm_one to kvm_two with its storage: the old image must not become its newest backup."""
    uri = simulated.host(tmp_path, vms=3, size=1 << 20)
    monkeypatch.setenv("AIRFLOW_CONN_KVM_ONE", json.dumps({"conn_type": "libvirt", "extra": {"uri": uri}}))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv(ENVIRONMENT, str(fleet_file))
    with connect(Host(name="kvm_one", uri=uri)) as hypervisor:
        here = sorted(seen_vms(hypervisor), key=lambda vm: vm.name)
    assert {vm.state for vm in here} == {VmState.STOPPED}
    now = datetime.now(UTC)

    def due_here() -> list[str]:
        params = {"vms": None, "dry_run": False, "mode": "auto"}
        found = policy_tasks.due_vms(policy="silver", host="kvm_one", params=params, conf={}, run="run")
        return [due["vm"] for due in found]

    def look(*, host: str, vms: list[SeenVm], at: datetime = now) -> None:
        with database.transaction() as cursor:
            inventory.note_seen(cursor, host=host, seen=[replace(vm, host=host) for vm in vms], now=at)
            looks.note(cursor, hosts=[host], now=now)

    everyone = [vm.name for vm in here]
    look(host="kvm_one", vms=here)
    assert due_here() == everyone
    look(host="kvm_two", vms=[replace(here[0], state=VmState.RUNNING)])
    look(host="kvm_one", vms=here)
    assert due_here() == everyone[1:]
    assert f"{everyone[0]} is left out: it is stopped here, and nas_sla_watch saw it on host kvm_two" in caplog.text
    look(host="kvm_two", vms=[here[0]])
    assert due_here() == everyone[1:], "stopped there, too, it is still the one that ran last"
    look(host="kvm_two", vms=[here[0]], at=now - timedelta(days=8))
    assert due_here() == everyone, "nobody has seen that one for a week"
    look(host="kvm_two", vms=[here[0]])
    look(host="kvm_one", vms=here)
    assert due_here() == everyone[1:]
    with database.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_two"], now=now - timedelta(hours=1))
    assert due_here() == everyone, "nobody looks at that host any more"
    look(host="kvm_two", vms=[])
    assert due_here() == everyone, "it is defined there no more"


def backed_up(database: Database, vm: SeenVm, *, at: datetime, repository: str = "nas_main") -> None:
    """A full in the catalog, of a VM that it knows."""
    place = Repository(name=repository, type=RepositoryType.LOCAL, path=f"/mnt/{repository}")
    with database.transaction() as cursor:
        repositories.register(cursor, repository=place, uuid=str(uuid5(NAMESPACE_URL, repository)))
        cursor.execute(
            "INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_position,"
            " host, vm_state, request, run_id, lease_token, created_at, recorded_at, size)"
            " SELECT vm_id, repository_id, vm.name || '/' || %(at)s, 'FULL', 'BackedUp', 'full_backup', '', 0, host,"
            " 'stopped', '{}', '', 1, %(at)s, %(at)s, 1 FROM vm, repository r"
            " WHERE vm.uuid = %(uuid)s AND r.name = %(repository)s",
            {"uuid": vm.uuid, "at": at, "repository": repository},
        )


def test_a_backup_from_the_future_does_not_put_its_vm_last(
    database: Database, fleet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(fleet_file))
    uri = simulated.host(tmp_path, vms=3, size=1 << 20)
    with connect(Host(name="kvm_one", uri=uri)) as hypervisor:
        here = sorted(seen_vms(hypervisor), key=lambda vm: vm.name)
    now = datetime.now(UTC)
    with database.transaction() as cursor:
        inventory.note_seen(cursor, host="kvm_one", seen=here, now=now)
    # The first: by a clock ten years ahead, then yesterday. The second: by that clock only. The third: today.
    for vm, ago in ((0, -3652), (0, 1), (1, -3652), (2, 0)):
        backed_up(database, here[vm], at=now - timedelta(days=ago))
    in_order, _ = policy_tasks._in_need(database, vms=here, now=now)
    assert [vm.name for vm in in_order] == [here[1].name, here[0].name, here[2].name]


def test_a_zone_that_spreads_its_vms_leaves_those_with_backups_where_they_are(
    database: Database, fleet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = simulated.host(tmp_path, vms=8, size=1 << 20)
    file = tmp_path / "fleet.yaml"
    monkeypatch.setenv("AIRFLOW_CONN_KVM_ONE", json.dumps({"conn_type": "libvirt", "extra": {"uri": uri}}))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.setenv(ENVIRONMENT, str(file))
    with connect(Host(name="kvm_one", uri=uri)) as hypervisor:
        here = seen_vms(hypervisor)

    def places(*, spread: str) -> dict[str, str]:
        where = "repositories: [nas_main, nas_spare]"
        file.write_text(fleet_file.read_text().replace(where, f"{where}, spread: {spread}"))
        params = {"vms": None, "dry_run": False, "mode": "auto"}
        found = policy_tasks.due_vms(policy="silver", host="kvm_one", params=params, conf={}, run="run")
        return {due["vm"]: due["conf"]["repository"] for due in found}

    assert set(places(spread="false").values()) == {"nas_main"}
    before = places(spread="true")
    assert set(before.values()) == {"nas_main", "nas_spare"}
    stays = next(vm for vm in here if before[vm.name] == "nas_spare")
    with database.transaction() as cursor:
        inventory.note_seen(cursor, host="kvm_one", seen=here, now=datetime.now(UTC))
    backed_up(database, stays, at=datetime.now(UTC) - timedelta(days=1), repository="nas_main")
    assert places(spread="true") == {**before, stays.name: "nas_main"}


def test_the_number_is_the_one_by_which_airflow_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.configuration import conf

    assert mapped.most() == conf.getint("core", "max_map_length") == 1024
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "5000")
    assert mapped.most() == conf.getint("core", "max_map_length") == 5000
