"""While somebody is asked whether a VM's volumes shall be replaced: the backup waits for the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nasbackup.airflow import restore_tasks
from nasbackup.errors import BackupNotRestorable
from nasbackup.fleet import ENVIRONMENT
from nasbackup.model import BackupStatus
from nasbackup.restore.image import locate
from nasbackup.steps.delete import delete, finish

from tests.integration.restoring import contents
from tests.integration.story import Story

RUN = "manual__1"
PARAMS: dict[str, Any] = {
    **{"backup": "", "vm": None, "before": None, "target": "in_place", "host": "kvm_test", "volumes": []},
    **{"new_name": None, "attach_to": None, "to": None, "pool": None, "format": "qcow2", "keep_macs": False},
    **{"start": False, "keep_old": False, "approved": False},
}


@pytest.fixture
def airflow(story: Story, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a task finds: a fleet, and the Connections of its catalog and its host."""
    (tmp_path / "fleet.yaml").write_text("zones: {default: {hosts: [kvm_test], repositories: [nas_test]}}\n")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "fleet.yaml"))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(story.site.database.parameters["dsn"]))
    connection = {"conn_type": "libvirt", "extra": {"uri": story.site.host.uri}}
    monkeypatch.setenv("AIRFLOW_CONN_KVM_TEST", json.dumps(connection))


def marks(story: Story) -> list[str]:
    with story.site.database.transaction() as cursor:
        cursor.execute("SELECT reader FROM reading")
        return [row["reader"] for row in cursor.fetchall()]


@pytest.mark.usefixtures("airflow")
@pytest.mark.parametrize("answer", ["Approve", "Reject"])
def test_a_backup_that_is_deleted_before_the_answer_is_kept_for_it(story: Story, answer: str) -> None:
    story.machine.guest_io("vda", "write -P 0x31 0 1M")
    backup = story.backup()
    wanted = contents(story.machine)
    story.machine.guest_io("vda", "write -P 0x32 0 1M")
    story.machine.destroy()
    params = PARAMS | {"backup": backup.external_id}
    planned = restore_tasks.plan(params=params, conf=None, run_id=RUN)
    assert "it would replace" in planned["question"]
    assert marks(story) == [f"nas_restore/{RUN}"]

    (deleted,) = delete(story.site, external_ids=[backup.external_id], holder="midnight")
    assert (deleted.removed, deleted.kept_by) == ((), (f"nas_restore/{RUN}",))
    assert story.load(backup.backup_id).status is BackupStatus.DELETE_PENDING
    with pytest.raises(BackupNotRestorable, match="somebody has deleted it"):
        locate(story.site.database, external_id=backup.external_id, reader="nas_restore/manual__2")
    if answer == "Approve":
        for work in planned["work"]:
            restore_tasks.restore(params=params, work=work, run_id=RUN, try_number=1)
        restore_tasks.commit(params=params, backup=backup.external_id, run_id=RUN)
        assert contents(story.machine) == wanted
    restore_tasks.give_back(params=params, backup=backup.external_id, run_id=RUN)
    assert marks(story) == []
    gone = finish(story.site, vm_uuid=story.machine.uuid, vm=story.machine.name, holder="next night")
    assert [removal.external_id for removal in gone.removed] == [backup.external_id]
