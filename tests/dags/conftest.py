"""All DAGs, parsed once with a fleet of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from nasbackup.fleet import ENVIRONMENT

ROOT = Path(__file__).parents[2]
DAG_FILES = sorted((ROOT / "dags").glob("*.py"))

FLEET = """
zones:
  east: {hosts: [kvm_one, kvm_two], repositories: [nas_main, nas_spare]}
  west: {hosts: [kvm.three], repositories: [nas_main]}
policies:
  gold: {vms: ["*-db"], zones: [east], schedule: "0 1 * * *", timezone: Europe/Berlin, blackout: ["08:00-18:00"]}
  silver: {vms: ["*"], schedule: ["0 2 * * *", "0 14 * * 6"]}
  by-hand: {vms: ["*"]}
"""


@pytest.fixture(scope="module")
def fleet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    file.write_text(FLEET)
    return file


@pytest.fixture(scope="module")
def dags(fleet_file: Path) -> Mapping[str, Any]:
    """All DAGs by id, from every file."""
    from airflow.dag_processing.dagbag import DagBag

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(fleet_file))
        bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    found: dict[str, Any] = bag.dags
    assert {Path(dag.fileloc).name for dag in found.values()} == {file.name for file in DAG_FILES}
    return found
