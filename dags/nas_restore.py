"""
### Restore a backup to images

`plan ─▶ restore[volume] ─▶ summary`, and `give_back` always

Every layer of the chain is read back and compared with its recorded digest before anything is written; then each
volume becomes one standalone image in the directory `to`. Nothing is defined or started, and the chain of the
VM stays as it is. The directory is on the machine that runs the task.

While it lasts the VM is not backed up, and none of its backups is deleted: the run holds the VM's lease, and
`give_back` returns it.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, get_current_context, task
from nasbackup.airflow.forms import restore_params
from nasbackup.airflow.retries import task_defaults


@dag(
    dag_id="nas_restore",
    dag_display_name="NAS restore",
    description="Restore the volumes of a backup to standalone images",
    doc_md=__doc__,
    schedule=None,
    params=restore_params(),
    tags=["nas-backup"],
    is_paused_upon_creation=False,
    default_args=task_defaults(),
)
def nas_restore() -> None:
    @task
    def plan() -> list[str]:
        """Check the request; name the volumes."""
        from nasbackup.airflow import restore_tasks

        context = get_current_context()
        run = context["dag_run"]
        return restore_tasks.plan(params=context["params"], conf=run.conf, run_id=run.run_id)

    @task(map_index_template="{{ volume_label }}")
    def restore(volume: str) -> dict[str, Any]:
        """Verify every layer, then write the image."""
        from nasbackup.airflow import restore_tasks

        context = get_current_context()
        context["volume_label"] = volume
        return restore_tasks.restore(
            params=context["params"],
            volume=volume,
            run_id=context["dag_run"].run_id,
            try_number=context["ti"].try_number,
        )

    @task
    def summary(restored: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What was restored, and where it is."""
        return list(restored)

    @task
    def give_back() -> None:
        """Give the VM's lease back."""
        from nasbackup.airflow import restore_tasks

        context = get_current_context()
        restore_tasks.give_back(params=context["params"], run_id=context["dag_run"].run_id)

    planned = plan()
    restored = restore.expand(volume=planned)
    summary(restored)
    restored >> give_back().as_teardown(setups=planned)


nas_restore()
