"""
### Prove that a backup comes up

`choose ─▶ drill`

* **choose** takes the backup that is named, or picks one: if not told otherwise the newest one that was never drilled,
  of the VM whose last drill is longest ago.
* **drill** boots it on an overlay, without any network, as a VM of a name of its own, and waits for the guest agent (or
  for what the serial console shows). Its result, and how long it took until the guest answered, is recorded
  (`nasbackup drills`). A backup that does not come up fails the run: a red task is the alert, and its message has the
  last words of the console.

What the VM writes is thrown away, and so is the VM; the backup is only read. Its source is not touched, and may run and
be backed up meanwhile. Unpause this DAG: it runs weekly.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, get_current_context, task
from nasbackup.airflow.drill_form import drill_params
from nasbackup.airflow.retries import task_defaults
from nasbackup.airflow.schedule import at_its_times
from nasbackup.fleet.last_valid import last_valid


@dag(
    dag_id="nas_restore_drill",
    dag_display_name="NAS restore drill",
    description="Boot a backup, apart from everything, and see whether it answers",
    doc_md=__doc__,
    schedule=at_its_times("0 0 * * 0"),
    catchup=False,
    max_active_runs=1,
    params=drill_params(last_valid()),
    tags=["nas-backup"],
    default_args=task_defaults(),
)
def nas_restore_drill() -> None:
    @task
    def choose() -> dict[str, str]:
        """Which backup, and where."""
        from nasbackup.airflow import drill_tasks

        context = get_current_context()
        return drill_tasks.choose(params=context["params"], conf=context["dag_run"].conf)

    @task
    def drill(chosen: dict[str, str]) -> dict[str, Any]:
        """Boot it, and wait for the guest's answer."""
        from nasbackup.airflow import drill_tasks

        context = get_current_context()
        return drill_tasks.carry_out(chosen=chosen, params=context["params"], run_id=context["dag_run"].run_id)

    drill(choose())


nas_restore_drill()
