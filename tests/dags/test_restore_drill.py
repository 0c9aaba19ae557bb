"""The flow and the form of ``nas_restore_drill``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError
from nasbackup.airflow.drill_form import drill_params
from nasbackup.airflow.forms import require_known_keys
from nasbackup.errors import UnknownParam
from nasbackup.fleet import load
from nasbackup.pick import Pick

from tests.dags.test_dags import filled
from tests.dags.test_retention_and_restore import flow

ID = "i-2-1-VM/2026.01.31.22.00.05"


def test_a_drill_is_chosen_and_carried_out_once_a_week(dags: Mapping[str, Any]) -> None:
    dag = dags["nas_restore_drill"]
    assert flow(dag) == {"choose": {"drill"}, "drill": set()}
    assert (dag.catchup, dag.max_active_runs) == (False, 1)


def test_the_form_asks_for_nothing_and_takes_all_it_offers(dags: Mapping[str, Any]) -> None:
    dag = dags["nas_restore_drill"]
    assert filled(dag) == {
        "backup": None,
        "pick": "never-drilled",
        "vms": [],
        "host": None,
        "timeout": 600,
        "pattern": None,
        "sums": None,
        "keep": False,
    }
    asked = {
        "backup": ID,
        "vms": ["i-*"],
        "host": "kvm_two",
        "timeout": 1,
        "pattern": "login:",
        "sums": "/x",
        "keep": True,
    }
    assert filled(dag, **asked) == {**asked, "pick": "never-drilled"}
    for pick in Pick:
        assert filled(dag, pick=pick.value)["pick"] == pick


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("backup", "../../etc/passwd"), ("backup", ""), ("pick", "newest"), ("pick", None), ("vms", "i-*")),
        *(("host", "kvm_four"), ("timeout", 0), ("timeout", "10m"), ("keep", "yes"), ("pattern", 1)),
    ],
)
def test_a_bad_value_is_refused(dags: Mapping[str, Any], name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError):
        filled(dags["nas_restore_drill"], **{name: value})


def test_a_typo_is_no_default(fleet_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASBACKUP_FLEET", str(fleet_file))
    with pytest.raises(UnknownParam, match="'backups'"):
        require_known_keys({"backups": ID}, form=drill_params(load()))
