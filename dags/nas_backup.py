"""
### One run: one VM, one restore point

```
decide_chain ─▶ checkpoint ─▶ copy[volume] ─▶ verify[volume] ─▶ record
     └────────────────────── end_job (always) ─────────────────────┘
```

* **decide_chain** takes the VM's lease and decides: full or incremental, and why. Its result shows the reason.
* **checkpoint** fixes the point in time for all volumes at once; the guest runs on.
* **copy** streams each volume (full: allocated blocks; incremental: changed blocks) to the NAS.
* **verify** reads every volume back from the NAS and compares digests; with level `structure` it checks the
  files only, and the backup is recorded as not verified.
* **record** publishes the backup: from then on it exists, complete. It is an event of the asset `nas_backup`, and of
  `nas_backup/<uuid of the VM>`: other DAGs can follow it.
* **end_job** leaves the guest without a job, and undoes a backup that did not get to the end. The chain's old base
  stands until the new backup is recorded: after a failed run the next one is incremental again.
* **try_again** triggers one more run when the VM was started or stopped in the midst of this one; else it is skipped.

Settings are Variables: `nas.backup.incremental.enabled` (true), `nas.backup.full.every` (10); `<key>.<zone>` overrides
them in one zone. After `nas.backup.deadline.seconds` (six hours) an alert says that the backup takes too long.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, get_current_context, task
from nasbackup.airflow import assets
from nasbackup.airflow.deadline import backup_deadline
from nasbackup.airflow.forms import backup_params
from nasbackup.airflow.retries import task_defaults
from nasbackup.airflow.try_again import TryAgainOperator
from nasbackup.fleet.last_valid import last_valid

VOLUME_LABEL = "{{ volume_label }}"


@dag(
    dag_id="nas_backup",
    dag_display_name="NAS backup of one VM",
    description="Full or incremental backup of one VM to the NAS",
    doc_md=__doc__,
    schedule=None,
    params=backup_params(last_valid()),
    tags=["nas-backup"],
    max_active_runs=64,
    deadline=backup_deadline(),
    is_paused_upon_creation=False,
    default_args=task_defaults(),
)
def nas_backup() -> None:
    @task
    def decide_chain() -> dict[str, Any]:
        """Full or incremental, and why."""
        from nasbackup.airflow import backup_tasks

        context = get_current_context()
        return backup_tasks.decide_chain(
            params=context["params"], conf=context["dag_run"].conf, run_id=context["dag_run"].run_id
        )

    @task
    def checkpoint(decided: dict[str, Any]) -> list[dict[str, Any]]:
        """Fix the point in time for all volumes."""
        from nasbackup.airflow import backup_tasks

        return backup_tasks.checkpoint(decided=decided, quiesce=get_current_context()["params"]["quiesce"])

    @task(map_index_template=VOLUME_LABEL)
    def copy(volume: dict[str, Any]) -> dict[str, Any]:
        """Stream one volume to the NAS."""
        from nasbackup.airflow import backup_tasks

        get_current_context()["volume_label"] = volume["volume"]
        return backup_tasks.copy(volume=volume)

    @task(map_index_template=VOLUME_LABEL)
    def verify(copied: dict[str, Any]) -> dict[str, Any]:
        """Read one volume back from the NAS and compare."""
        from nasbackup.airflow import backup_tasks

        get_current_context()["volume_label"] = copied["volume"]
        return backup_tasks.verify(copied=copied)

    @task(outlets=[assets.BACKUPS, assets.OF_VM])
    def record(decided: dict[str, Any]) -> dict[str, Any]:
        """Publish the backup."""
        from nasbackup.airflow import backup_tasks

        recorded = backup_tasks.record(decided=decided)
        events = get_current_context()["outlet_events"]
        assets.emit(events, recorded=recorded, vm_uuid=decided["ticket"]["vm_uuid"])
        return recorded

    @task(retries=4)
    def end_job(decided: dict[str, Any]) -> dict[str, Any]:
        """Leave no job behind; undo a backup that failed."""
        from nasbackup.airflow import backup_tasks

        return backup_tasks.end_job(decided=decided)

    decided = decide_chain()
    verified = verify.expand(copied=copy.expand(volume=checkpoint(decided)))
    recorded = record(decided)
    verified >> recorded
    # Not on_failure_fail_dagrun: it would make end_job the leaf that decides the run's state in place of record,
    # and a run whose copy failed would be green.
    ended = end_job(decided).as_teardown(setups=decided)
    recorded >> ended
    TryAgainOperator(task_id="try_again", ending=ended)


nas_backup()
