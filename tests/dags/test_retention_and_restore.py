"""The flows of ``nas_retention`` and ``nas_restore``, and what their forms take."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError
from nasbackup.airflow.forms import is_dry_run, require_known_keys, retention_params
from nasbackup.errors import UnknownParam

from tests.dags.test_dags import filled


def flow(dag: Any) -> dict[str, set[str]]:
    return {task.task_id: set(task.downstream_task_ids) for task in dag.tasks}


def test_nothing_is_deleted_without_report_and_approval(dags: Mapping[str, Any]) -> None:
    assert flow(dags["nas_retention"]) == {
        "report": {"approval", "approval_of_last"},
        "approval": {"delete"},
        "delete": {"summary", "capacity", "nothing_failed"},
        "summary": set(),
        "capacity": set(),
        "nothing_failed": set(),
        "approval_of_last": {"delete_last"},
        "delete_last": {"summary_of_last", "nothing_failed_of_last"},
        "summary_of_last": set(),
        "nothing_failed_of_last": set(),
    }


def test_a_run_fails_when_a_deletion_does_and_when_a_repository_is_filling_up(dags: Mapping[str, Any]) -> None:
    """Leaves decide the run's state: summary and capacity tell what there is to tell, and nothing_failed fails then."""
    retention = dags["nas_retention"]
    for name in ("summary", "summary_of_last", "capacity"):
        assert retention.get_task(name).trigger_rule == "all_done"
    for name in ("nothing_failed", "nothing_failed_of_last"):
        assert retention.get_task(name).trigger_rule == "none_failed"
    assert not retention.catchup


def test_a_question_that_nobody_answers_holds_up_no_other_run(dags: Mapping[str, Any]) -> None:
    """Its run stays active for most of a day; somebody who has to make room by hand must not wait for that."""
    assert dags["nas_retention"].max_active_runs > 2


def test_a_restore_is_undone_and_its_lease_given_back_however_it_ends(dags: Mapping[str, Any]) -> None:
    restore = dags["nas_restore"]
    assert flow(restore) == {
        "plan": {"approval", "commit", "give_back"},
        "approval": {"restore"},
        "restore": {"commit", "summary"},
        "commit": {"summary", "give_back"},
        "summary": set(),
        "give_back": set(),
    }
    assert (restore.get_task("plan").is_setup, restore.get_task("give_back").is_teardown) == (True, True)
    assert not restore.get_task("give_back").on_failure_fail_dagrun


def test_the_form_of_retention_asks_for_nothing(dags: Mapping[str, Any]) -> None:
    assert filled(dags["nas_retention"]) == {"dry_run": None, "backups": [], "vms": [], "rules": None}
    asked = {"dry_run": False, "backups": ["i-2-1-VM/2026.01.31.22.00.05"], "vms": ["i-*"], "rules": {"keep_last": 1}}
    assert filled(dags["nas_retention"], **asked) == asked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dry_run", "no"),
        ("backups", "i-2-1-VM/2026.01.31.22.00.05"),
        ("backups", ["i-2-1-VM"]),
        ("backups", ["../../etc/2026.01.31.22.00.05"]),
        ("vms", [""]),
        ("rules", "keep_last=1"),
    ],
)
def test_what_the_form_refuses(dags: Mapping[str, Any], name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError):
        filled(dags["nas_retention"], **{name: value})


@pytest.mark.parametrize(
    ("asked", "run_type", "expected"),
    [
        (None, "manual", True),
        (None, "scheduled", False),
        (None, "asset_triggered", False),
        (False, "manual", False),
        (True, "scheduled", True),
    ],
)
def test_only_a_run_by_hand_is_a_dry_run_by_itself(asked: bool | None, run_type: str, expected: bool) -> None:
    context = {"params": {"dry_run": asked}, "dag_run": SimpleNamespace(run_type=run_type)}
    assert is_dry_run(context) is expected


def test_a_typo_does_not_become_a_default() -> None:
    with pytest.raises(UnknownParam, match=r"'dryrun'. Known keys are: backups, dry_run, rules, vms"):
        require_known_keys({"dryrun": True}, form=retention_params())


def test_the_form_of_a_restore_asks_for_a_backup_or_a_vm(dags: Mapping[str, Any]) -> None:
    restore = dags["nas_restore"]
    defaults = filled(restore)
    assert (defaults["target"], defaults["approved"], defaults["keep_old"], defaults["start"]) == (
        "image",
        False,
        True,
        False,
    )
    asked = {"vm": "i-2-1-VM", "before": "2026-01-31T22:00:00+00:00", "target": "in_place", "approved": True}
    assert filled(restore, **asked) == {**defaults, **asked}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backup", "../../etc/2026.01.31.22.00.05"),
        ("target", "somewhere"),
        ("target", "new-vm"),
        ("format", "vmdk"),
        ("volumes", "root"),
        ("approved", "yes"),
        ("host", "nowhere"),
    ],
)
def test_what_the_form_of_a_restore_refuses(dags: Mapping[str, Any], name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError):
        filled(dags["nas_restore"], **{name: value})
