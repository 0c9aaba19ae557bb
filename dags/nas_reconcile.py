"""
### What a crash left behind is found and taken away

`find ─▶ carry_out[host and repository]`

* **find** compares the catalog with every host and every repository: backups whose run died, jobs, checkpoints and
  bitmaps, sockets, scratch files and directories that nothing needs, and restores that were cut off while volumes were
  swapped. It fails as a whole when a host or a repository cannot be seen: on a partial view nothing is done.
* **carry_out** takes them away, VM by VM, under the VM's lease and after a second look. A VM that is being backed up is
  left alone, and so is everything that the catalog did not make.

A scheduled run acts; a manual run only lists, unless `dry_run` is set to false.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, get_current_context, task
from nasbackup.airflow.forms import is_dry_run, reconcile_params
from nasbackup.airflow.retries import task_defaults
from nasbackup.airflow.schedule import at_its_times


@dag(
    dag_id="nas_reconcile",
    dag_display_name="NAS reconcile",
    description="Take away what crashes left on hosts and repositories",
    doc_md=__doc__,
    schedule=at_its_times("0 * * * *"),
    catchup=False,
    max_active_runs=1,
    params=reconcile_params(),
    tags=["nas-backup"],
    default_args=task_defaults(),
)
def nas_reconcile() -> None:
    @task
    def find() -> list[dict[str, Any]]:
        """Compare; list what would be done."""
        from nasbackup.airflow import reconcile_tasks

        return reconcile_tasks.find(conf=get_current_context()["dag_run"].conf)

    @task(map_index_template="{{ place }}")
    def carry_out(found: dict[str, Any]) -> list[dict[str, Any]]:
        """Do it, unless this is a dry run."""
        from nasbackup.airflow import reconcile_tasks

        context = get_current_context()
        context["place"] = f"{found['host']} {found['repository']}"
        return reconcile_tasks.carry_out(found=found, dry_run=is_dry_run(context), run_id=context["dag_run"].run_id)

    carry_out.expand(found=find())


nas_reconcile()
