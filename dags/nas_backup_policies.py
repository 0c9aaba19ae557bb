"""
### The backups that a policy promises: one DAG per policy of `fleet.yaml` that has a schedule

`window ─▶ host: due ─▶ back_up[vm]`, for each host

* **window** waits for the end of a blackout window.
* **due** asks the host for its VMs, and takes those that this policy is the first to match: what was never backed up
  first, then those whose newest backup is the oldest. A VM that is being backed up already is left out.
* **back_up** triggers `nas_backup` for one VM and waits for its end, without a process of its own. It holds a slot of
  the pool `nas_host_<host>`; copies take one of `nas_repository_<repository>`. Both pools are made when they are first
  needed, and follow `host_slots` and `repository_slots` of `fleet.yaml`; what is set under Admin → Pools stays until
  those change.

A night that was missed is caught up once. Changes of `fleet.yaml` need no restart; while it is wrong the last valid one
counts.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task, task_group
from nasbackup.airflow.begin_backup import BeginBackupOperator
from nasbackup.airflow.forms import policy_params
from nasbackup.airflow.pools import BACK_UP, POLICY_DAG, group_of
from nasbackup.airflow.retries import task_defaults
from nasbackup.airflow.schedule import RESTART, at_its_times
from nasbackup.fleet import Fleet, Policy
from nasbackup.fleet.last_valid import last_valid


def define(policy: Policy, *, fleet: Fleet) -> None:
    @dag(
        dag_id=POLICY_DAG + policy.name,
        dag_display_name=f"NAS backup policy {policy.name}",
        description=f"Back up the VMs of policy {policy.name}",
        doc_md=__doc__,
        schedule=at_its_times(*policy.schedule, timezone=policy.timezone, late=RESTART),
        catchup=False,
        max_active_runs=1,
        params=policy_params(),
        tags=["nas-backup", "nas-backup-policy"],
        is_paused_upon_creation=False,
        default_args=task_defaults(),
    )
    def nas_backup_policy() -> None:
        @task.sensor(mode="reschedule", poke_interval=60, timeout=15 * 86400)
        def window() -> bool:
            """Wait for the end of a blackout window."""
            from nasbackup.airflow import policy_tasks

            return policy_tasks.is_open(policy=policy.name, params=get_current_context()["params"])

        @task(execution_timeout=timedelta(minutes=15))
        def due(host: str) -> list[dict[str, Any]]:
            """Which VMs of this host are to be backed up."""
            from nasbackup.airflow import policy_tasks

            context = get_current_context()
            run = context["dag_run"]
            return policy_tasks.due_vms(
                policy=policy.name,
                host=host,
                params=context["params"],
                conf=run.conf,
                run=f"{run.dag_id}__{run.run_id}",
            )

        opened = window()
        for zone in fleet.zones_of(policy):
            for host in zone.hosts:

                @task_group(group_id=group_of(host))
                def on_host(host: str) -> None:
                    """The VMs of one host."""
                    found = due(host)
                    opened >> found
                    BeginBackupOperator.partial(
                        task_id=BACK_UP, policy=policy.name, map_index_template="{{ task.vm }}", retries=0
                    ).expand_kwargs(found)

                on_host(host)

    nas_backup_policy()


known = last_valid()
for each in known.policies:
    if each.schedule:
        define(each, fleet=known)
