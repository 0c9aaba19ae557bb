"""
### Is every VM protected as promised?

`look ─▶ deliver[channel]`, and `look ─▶ emit`

* **look** asks every host for its VMs and the catalog for their backups, apart from all runs: a schedule that never
  fired is seen here. A host that says nothing holds up no other. Each VM is judged by its policy (`fleet.yaml`): age
  of the newest restorable backup against the RPO, failures, what changed, volumes, verification, drills. Alerts are
  opened once, updated, and closed when what they say is true no more. Its result counts the VMs and says the worst.
* **deliver** tells each channel of `fleet.yaml` what it was not told yet, in one message. What a channel refuses is
  tried again after the next look.
* **emit** hands the fleet's numbers to Airflow's metrics, and measures once an hour how full the repositories are, for
  the looks that come. After two minutes it leaves the rest to the next look: a NAS that is silent holds up no look.

While `fleet.yaml` is wrong the last valid one counts, and that is an alert.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task
from nasbackup.airflow.retries import task_defaults
from nasbackup.fleet.last_valid import last_valid
from nasbackup.sla import LOOK_EVERY


@dag(
    dag_id="nas_sla_watch",
    dag_display_name="NAS SLA watch",
    description="Judge every VM by its policy; open, deliver and close alerts",
    doc_md=__doc__,
    schedule=f"*/{LOOK_EVERY // timedelta(minutes=1)} * * * *",
    catchup=False,
    max_active_runs=1,
    tags=["nas-backup"],
    is_paused_upon_creation=False,
    default_args=task_defaults(),
)
def nas_sla_watch() -> None:
    @task(execution_timeout=timedelta(minutes=20))
    def look() -> dict[str, Any]:
        """Judge every VM; open and close alerts."""
        from nasbackup.airflow import sla_tasks

        return sla_tasks.look_at_fleet()

    @task(map_index_template="{{ channel_label }}", execution_timeout=timedelta(minutes=10))
    def deliver(channel: str) -> dict[str, Any]:
        """Tell a channel what it was not told yet."""
        from nasbackup.airflow import alert_tasks

        get_current_context()["channel_label"] = channel
        return alert_tasks.deliver(channel=channel)

    @task(execution_timeout=timedelta(minutes=10))
    def emit() -> None:
        """The fleet's numbers, for Airflow's metrics; how full the repositories are, once an hour."""
        from nasbackup.airflow import alert_tasks

        alert_tasks.emit()
        alert_tasks.measure_repositories()

    looked = look()
    looked >> [deliver.expand(channel=[channel.name for channel in last_valid().channels]), emit()]


nas_sla_watch()
