"""``nas_restore_drill`` under a real scheduler, with a real guest."""

from __future__ import annotations

import os
from typing import Any

import pytest
from nasbackup.catalog import drills

from lab import vm as lab
from tests.system.conftest import Plant

pytestmark = pytest.mark.system


def test_a_backup_that_comes_up_is_recorded_and_one_that_does_not_is_a_red_task(plant: Plant) -> None:
    plant.airflow.wait_for_dag("nas_restore_drill")  # and unpause it
    connection: Any = lab.connect()
    name = f"i-3-{os.getpid()}-drill"
    volumes = [lab.Volume(size=16 << 20, filesystem=True)]
    with lab.lab_vm(connection, name=name, volumes=volumes, operating_system=True) as machine:
        backup = plant.recorded(plant.backup(machine.name))

        run = plant.airflow.trigger("nas_restore_drill", conf={"vms": [name]})
        assert plant.airflow.wait("nas_restore_drill", run) == "success"
        found = plant.airflow.result("nas_restore_drill", run, "drill")
        assert (found["external_id"], found["result"], found["how"]) == (backup.external_id, "ok", "agent")

        # At once, and as it is: not tried again.
        conf = {"backup": backup.external_id, "pattern": "never said", "timeout": 2}
        run = plant.airflow.trigger("nas_restore_drill", conf=conf)
        assert plant.airflow.wait("nas_restore_drill", run) == "failed"
        assert f"The drill of backup {backup.external_id} failed" in plant.airflow.log(
            "nas_restore_drill", run, "drill"
        )

        run = plant.airflow.trigger("nas_restore_drill", conf={"backup": backup.external_id, "vm": name})
        assert plant.airflow.wait("nas_restore_drill", run) == "failed"
        assert "Unknown key in the run's conf: 'vm'" in plant.airflow.log("nas_restore_drill", run, "choose")

        with plant.database.transaction() as cursor:
            history = drills.history(cursor, vm=name)
        assert [record.ok for record in history] == [False, True]
        assert machine.running
        machine.console().sync()
        plant.assert_nothing_is_left(machine)
        assert not [domain for domain in connection.listAllDomains() if domain.name().startswith("drill-")]
    connection.close()
