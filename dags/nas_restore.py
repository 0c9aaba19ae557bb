"""
### Restore a backup

`plan ─▶ approval ─▶ restore[volume] ─▶ commit ─▶ summary`, and `give_back` always

`target` says what the backup becomes: standalone **image** files; a **new_vm** beside the old one; the VM itself again,
**in_place**; one **volume** as a new disk of a VM; or an **instant** VM, which runs from the backup within seconds and
is copied out of it while it runs (`docs/access.md`). What to do at night, step by step: `docs/restore.md`.

* **plan** finds the backup, matches its volumes with the VM's disks, and says with numbers whether there is room.
* **approval** asks before volumes of a VM are replaced (Browse → Required Actions), unless `approved` is set. No answer
  within 20 hours is a no. Meanwhile the VM may be backed up.
* **restore** reads every layer of one volume back and compares it with its recorded digest; then it writes the image
  beside its later place, reads that back and compares it. Nothing that exists is touched.
* **commit** makes it so, as a whole or not at all: images get their names, then the VM is defined, or the volumes of
  the stopped VM are swapped (the old ones are kept; a disk that was moved, resized or converted since `plan` is
  refused), or the disk is attached (its image stays when libvirt does not take it).
* **give_back** undoes what was not committed and returns the VM's lease. Until then the VM is not backed up, and none
  of its backups is deleted.

Directories are those of the machine that runs the task: the KVM host.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, get_current_context, task
from nasbackup.airflow.approval import ApproveWhenAsked
from nasbackup.airflow.restore_form import restore_params
from nasbackup.airflow.retries import task_defaults
from nasbackup.fleet.last_valid import last_valid


@dag(
    dag_id="nas_restore",
    dag_display_name="NAS restore",
    description="Restore a backup: to images, to a new VM, in place, or one volume as a new disk",
    doc_md=__doc__,
    schedule=None,
    params=restore_params(last_valid()),
    tags=["nas-backup"],
    is_paused_upon_creation=False,
    default_args=task_defaults(),
)
def nas_restore() -> None:
    @task(multiple_outputs=True)
    def plan() -> dict[str, Any]:
        """Check the request; name the volumes."""
        from nasbackup.airflow import restore_tasks

        context = get_current_context()
        run = context["dag_run"]
        return restore_tasks.plan(params=context["params"], conf=run.conf, run_id=run.run_id)

    @task(map_index_template="{{ volume_label }}")
    def restore(work: dict[str, str]) -> dict[str, Any]:
        """Verify every layer, then write the image and compare it."""
        from nasbackup.airflow import restore_tasks

        context = get_current_context()
        context["volume_label"] = work["volume"]
        return restore_tasks.restore(
            params=context["params"],
            work=work,
            run_id=context["dag_run"].run_id,
            try_number=context["ti"].try_number,
        )

    @task
    def commit(backup: str) -> dict[str, Any]:
        """Define, swap or attach; its result says what is where."""
        from nasbackup.airflow import restore_tasks

        context = get_current_context()
        return restore_tasks.commit(params=context["params"], backup=backup, run_id=context["dag_run"].run_id)

    @task
    def summary(restored: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What was restored, and where it is."""
        return list(restored)

    @task
    def give_back(backup: str) -> None:
        """Undo what was not committed; give the VM's lease back."""
        from nasbackup.airflow import restore_tasks

        context = get_current_context()
        restore_tasks.give_back(params=context["params"], backup=backup, run_id=context["dag_run"].run_id)

    planned = plan()
    approved = ApproveWhenAsked(
        task_id="approval",
        question=planned["question"],
        work=planned["work"],
        subject="Shall these volumes be replaced?",
        body="The log of `plan` says what to know before.",
    )
    restored = restore.expand(work=approved.output)
    committed = commit(planned["backup"])
    restored >> committed >> summary(restored)
    committed >> give_back(planned["backup"]).as_teardown(setups=planned)


nas_restore()
