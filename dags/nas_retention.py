"""
### Delete what no policy keeps

`report ─▶ approval ─▶ delete[vm] ─▶ summary`, and `capacity[repository]` after the deletions;
`report ─▶ approval_of_last ─▶ delete_last[vm] ─▶ summary_of_last`

* **report** judges every backup by its VM's policy (`fleet.yaml`): its result says what would go and which rule keeps
  the rest, its log has each backup that goes, and why. VMs that no policy matches, or that no host defines any
  more, are listed with the day on which their backups go.
* **approval** asks (Browse → Required Actions) when a run would delete more than `retention.at_most` allows. No answer
  within 20 hours is a no.
* **delete** takes one VM, chain by chain: what is still unwanted goes, leaf first. A backup that others are built on
  stays, delete-pending, and falls with its last child. A VM that is being backed up or restored is left for the next
  run.
* **approval_of_last** asks, whatever the number, before a rule deletes the last restorable backup of a VM: that of a VM
  without a policy or without a definition, at the end of `keep_orphaned`. It holds up nothing else, other runs neither;
  no answer within 20 hours is a no, and the next run asks again. **delete_last** then deletes as `delete` does.
* **summary** counts what `delete` has removed, and the bytes that were freed, also when the deletions of some VM
  failed; then **nothing_failed** fails the run. **summary_of_last** and **nothing_failed_of_last** do the same for
  `delete_last`.
* **capacity** notes how full each repository is after `delete`, and fails when it passes a threshold of `fleet.yaml`.

A scheduled run deletes; a manual run only reports, unless `dry_run` is set to false. `backups` deletes what it names, a
VM's last one too: `approval_of_last` does not ask about those. `vms` and `rules` limit or replace what `fleet.yaml`
says for one run. While `fleet.yaml` is wrong `report` fails, and nothing is deleted.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task
from nasbackup.airflow.approval import ApproveWhenAsked
from nasbackup.airflow.forms import is_dry_run, retention_params
from nasbackup.airflow.retries import task_defaults
from nasbackup.airflow.schedule import at_its_times
from nasbackup.fleet.last_valid import last_valid


@dag(
    dag_id="nas_retention",
    dag_display_name="NAS retention",
    description="Delete the backups that no policy keeps",
    doc_md=__doc__,
    schedule=at_its_times("0 0 * * *"),
    catchup=False,
    max_active_runs=4,  # a question that nobody answers keeps its run active: the others go on beside it
    params=retention_params(),
    tags=["nas-backup"],
    default_args=task_defaults(),
)
def nas_retention() -> None:
    @task(multiple_outputs=True, execution_timeout=timedelta(hours=2))
    def report() -> dict[str, Any]:
        """Judge every backup; nothing is deleted."""
        from nasbackup.airflow import retention_tasks

        context = get_current_context()
        return retention_tasks.report(
            params=context["params"], conf=context["dag_run"].conf, dry_run=is_dry_run(context)
        )

    @task(map_index_template="{{ vm_label }}", max_active_tis_per_dagrun=4)
    def delete(work: dict[str, Any]) -> dict[str, Any]:
        """Delete what is still unwanted of one VM, chain by chain, leaf first."""
        from nasbackup.airflow import deletion_tasks

        context = get_current_context()
        context["vm_label"] = work["vm"]
        return deletion_tasks.delete_of_vm(work=work, params=context["params"], run_id=context["dag_run"].run_id)

    @task(trigger_rule="all_done")
    def summary(deleted: list[dict[str, Any]]) -> dict[str, Any]:
        """What went, and what it freed."""
        from nasbackup.airflow import retention_tasks

        return retention_tasks.summary(deleted=list(deleted or ()))

    @task(map_index_template="{{ repository_label }}", trigger_rule="all_done")
    def capacity(repository: str) -> dict[str, Any]:
        """How full it is; fails when it is filling up."""
        from nasbackup.airflow import retention_tasks

        context = get_current_context()
        context["repository_label"] = repository
        return retention_tasks.measure_capacity(repository=repository, dry_run=is_dry_run(context))

    @task(trigger_rule="none_failed")
    def nothing_failed(deleted: list[dict[str, Any]]) -> None:
        """Fails when some deletion did."""
        from nasbackup.airflow import deletion_tasks

        deletion_tasks.require_nothing_failed(deleted=list(deleted or ()))

    reported = report()
    approved = ApproveWhenAsked(
        task_id="approval",
        question=reported["question"],
        work=reported["work"],
        subject="Shall so many backups be deleted?",
        body="The result of `report` says which, its log says why.",
    )
    deleted = delete.expand(work=approved.output)
    # Leaves, side by side: the run fails when one of them does. summary and capacity run, and succeed, also after a
    # deletion that failed; behind them nobody would hear of it.
    summary(deleted)
    nothing_failed(deleted)
    deleted >> capacity.expand(repository=last_valid().repositories)
    # Apart: nobody has to wait for this answer.
    last = ApproveWhenAsked(
        task_id="approval_of_last",
        question=reported["last_question"],
        work=reported["last"],
        subject="Shall these VMs' last backups be deleted?",
        body="Nothing would be left of them to restore. To keep one: `nasbackup pin`. Why: the log of `report`.",
    )
    deleted_last = delete.override(task_id="delete_last").expand(work=last.output)
    summary.override(task_id="summary_of_last")(deleted_last)
    nothing_failed.override(task_id="nothing_failed_of_last")(deleted_last)


nas_retention()
