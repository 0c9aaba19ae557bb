"""Every DAG: parses cheaply and without errors, documents itself, retries by the error tree, and checks its form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError
from nasbackup.fleet import ENVIRONMENT
from nasbackup.sla import LOOK_EVERY

from tests.dags.conftest import DAG_FILES, ROOT

HEAVY = ["libvirt", "libvirt_qemu", "nbd", "psycopg2.extras", "jsonschema", "nasbackup.catalog", "nasbackup.hypervisor"]
HEAVY += ["nasbackup.transfer", "nasbackup.steps", "nasbackup.restore", "nasbackup.airflow.hooks"]


@pytest.fixture
def nas_backup(dags: Mapping[str, Any]) -> Any:
    return dags["nas_backup"]


def test_each_file_holds_the_dag_of_its_name(dags: Mapping[str, Any]) -> None:
    files = {dag_id: Path(dag.fileloc).stem for dag_id, dag in dags.items()}
    policies = {"nas_backup_policy_gold": "nas_backup_policies", "nas_backup_policy_silver": "nas_backup_policies"}
    assert files == {name: name for name in dags if name not in policies} | policies


def test_each_dag_documents_itself(dags: Mapping[str, Any]) -> None:
    for dag in dags.values():
        assert dag.doc_md, dag.dag_id
        assert len(dag.doc_md.strip().splitlines()) > 3
        assert dag.description
        assert "nas-backup" in dag.tags
        for task in dag.tasks:
            assert task.owner == "nas-backup", f"{dag.dag_id}.{task.task_id}"
            assert (
                task.doc
                or task.doc_md
                or getattr(task, "python_callable", None) is None
                or task.python_callable.__doc__
            )


def test_each_task_retries_by_the_error_tree(dags: Mapping[str, Any]) -> None:
    from nasbackup.airflow.retries import retry_policy

    expected = retry_policy().serialize()
    for dag in dags.values():
        for task in dag.tasks:
            place = f"{dag.dag_id}.{task.task_id}"
            # Who begins a backup does not begin it twice: its run retries by itself.
            assert task.retries >= 1 or task.task_id.endswith(".back_up"), place
            assert task.retry_policy is not None, place
            assert task.retry_policy.serialize() == expected, place


def test_each_dag_survives_the_way_to_the_scheduler(dags: Mapping[str, Any]) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in dags.values():
        stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
        back = DagSerialization.from_dict(stored)
        assert set(back.task_dict) == {task.task_id for task in dag.tasks}


@pytest.mark.parametrize("file", DAG_FILES, ids=lambda file: file.name)
def test_parsing_imports_nothing_heavy(file: Path, fleet_file: Path) -> None:
    """The dag-processor does it again and again; and a machine without libvirt can still show the DAGs."""
    code = f"""
import importlib.util, json, sys
import airflow.sdk, airflow.sdk.definitions.dag
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("dag_file", {str(file)!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    # A package that is there but may not be imported: the entry None makes its import fail.
    forbid = "import sys; sys.modules.update({'libvirt': None, 'libvirt_qemu': None, 'nbd': None})\n"
    done = subprocess.run(
        [sys.executable, "-c", forbid + code],
        env={**os.environ, ENVIRONMENT: str(fleet_file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout.splitlines()[-1])
    allowed = {"jsonschema"}  # fleet.yaml is checked while a DAG's form is made
    assert [name for name in imported if name in set(HEAVY) - allowed] == []


def test_without_a_fleet_file_the_import_error_says_what_to_do(tmp_path: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(tmp_path / "missing.yaml"))
        bag = DagBag(str(ROOT / "dags" / "nas_backup.py"))
    (error,) = bag.import_errors.values()
    assert "missing.yaml: file: No such file or directory (its place is set by $NASBACKUP_FLEET)" in error


# --- nas_backup: the flow -------------------------------------------------------------------------------------


def test_the_flow_is_the_one_of_the_documentation(nas_backup: Any) -> None:
    flow = {task.task_id: set(task.downstream_task_ids) for task in nas_backup.tasks}
    assert {"decide_chain", "checkpoint", "copy", "verify", "record", "end_job"} <= set(flow)
    for before, after in (
        ("decide_chain", "checkpoint"),
        ("checkpoint", "copy"),
        ("copy", "verify"),
        ("verify", "record"),
        ("record", "end_job"),
    ):
        assert after in flow[before], f"{before} -> {after}"


def test_copy_and_verify_are_one_task_a_volume(nas_backup: Any) -> None:
    mapped = {task.task_id for task in nas_backup.tasks if task.is_mapped}
    assert mapped == {"copy", "verify"}
    for name in mapped:
        assert nas_backup.get_task(name).map_index_template == "{{ volume_label }}"


def test_end_job_is_the_teardown_of_decide_chain(nas_backup: Any) -> None:
    decide, end = nas_backup.get_task("decide_chain"), nas_backup.get_task("end_job")
    assert (decide.is_setup, end.is_teardown) == (True, True)
    assert not end.on_failure_fail_dagrun, "it would decide the run's state in place of record"
    assert "decide_chain" in end.upstream_task_ids
    assert [task.task_id for task in nas_backup.tasks if task.is_teardown] == ["end_job"]


def test_a_backup_runs_when_it_is_asked_for(nas_backup: Any) -> None:
    assert not nas_backup.timetable.can_be_scheduled
    assert not nas_backup.catchup


def test_the_fleet_is_looked_at_as_often_as_the_page_expects(dags: Mapping[str, Any]) -> None:
    assert dags["nas_sla_watch"].schedule == "*/5 * * * *"
    assert timedelta(minutes=5) == LOOK_EVERY


def test_the_numbers_of_a_look_wait_for_no_repository(dags: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from nasbackup.airflow import alert_tasks

    done: list[str] = []
    for name in ("emit", "measure_repositories"):
        monkeypatch.setattr(alert_tasks, name, lambda name=name: done.append(name))
    dags["nas_sla_watch"].get_task("emit").python_callable()
    assert done == ["emit", "measure_repositories"]


# --- nas_backup: the form -------------------------------------------------------------------------------------


def test_every_field_of_every_form_has_title_and_description(dags: Mapping[str, Any]) -> None:
    for dag in dags.values():
        for name in dag.params:
            schema = dag.params.get_param(name).schema
            assert schema.get("title"), f"{dag.dag_id}.{name}"
            assert dag.params.get_param(name).description or schema.get("description"), f"{dag.dag_id}.{name}"
            assert schema.get("type"), f"{dag.dag_id}.{name}"


def test_the_form_offers_what_fleet_and_model_know(nas_backup: Any) -> None:
    assert {"vm", "host", "repository", "mode", "quiesce", "exclude_volumes"} <= set(nas_backup.params)
    schemas = {name: nas_backup.params.get_param(name).schema for name in nas_backup.params}
    assert schemas["host"]["enum"] == ["kvm_one", "kvm_two", "kvm.three"]
    assert schemas["repository"]["enum"] == [None, "nas_main", "nas_spare"]
    assert schemas["mode"]["enum"] == ["auto", "full"]
    assert schemas["quiesce"]["enum"] == ["off", "continue", "fail"]
    for name in ("mode", "quiesce"):
        assert set(schemas[name]["values_display"]) == set(schemas[name]["enum"]), "every choice is explained"


def filled(dag: Any, **conf: Any) -> dict[str, Any]:
    """The params of a run with this conf, as Airflow makes them: defaults, conf on top, then validated."""
    params = dag.params.deep_merge(conf) if hasattr(dag.params, "deep_merge") else _merged(dag.params, conf)
    return dict(params.validate())


def _merged(params: Any, conf: Mapping[str, Any]) -> Any:
    import copy

    merged = copy.deepcopy(params)
    merged.update(conf)
    return merged


def test_the_vms_name_is_enough(nas_backup: Any) -> None:
    assert filled(nas_backup, vm="i-2-1234-VM") == {
        **filled(nas_backup, vm="another"),
        "vm": "i-2-1234-VM",
        "host": "kvm_one",
        "repository": None,
        "mode": "auto",
        "quiesce": "off",
        "exclude_volumes": [],
    }


def test_every_choice_that_is_offered_is_accepted(nas_backup: Any) -> None:
    for name in ("host", "repository", "mode", "quiesce", "compression", "verify"):
        for value in nas_backup.params.get_param(name).schema["enum"]:
            assert filled(nas_backup, vm="vm", **{name: value})[name] == value
    assert filled(nas_backup, vm="vm", exclude_volumes=["vdb", "/images/x"])["exclude_volumes"] == ["vdb", "/images/x"]


def test_a_run_without_a_vm_is_refused(nas_backup: Any) -> None:
    with pytest.raises(ParamValidationError):
        filled(nas_backup)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vm", ""),
        ("vm", None),
        ("vm", 7),
        ("vm", ["i-2-1234-VM"]),
        ("host", "kvm_four"),
        ("host", ""),
        ("host", None),
        ("repository", "nas_other"),
        ("repository", ""),
        ("mode", "incremental"),
        ("mode", "FULL"),
        ("mode", None),
        ("quiesce", "yes"),
        ("quiesce", True),
        ("compression", "lz4"),
        ("compression", None),
        ("bandwidth", 200),
        ("bandwidth", ""),
        ("bandwidth", "0 MiB/s"),
        ("bandwidth", "200 MB/s"),
        ("bandwidth", "200 MiB/s\n"),
        ("verify", "none"),
        ("verify", None),
        ("exclude_volumes", "vdb"),
        ("exclude_volumes", [""]),
        ("exclude_volumes", [1]),
        ("exclude_volumes", {"vdb": True}),
    ],
)
def test_a_bad_value_is_refused(nas_backup: Any, name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError):
        filled(nas_backup, **{"vm": "i-2-1234-VM", name: value})
