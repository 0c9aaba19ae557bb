"""Begin the backup of one VM that is due, and wait for its end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException


class BeginBackupOperator(TriggerDagRunOperator):
    """Trigger ``nas_backup`` for one VM. While it waits it holds a slot of its host's pool, and no process.

    ``vm``: its name, for people. It may have waited for its slot for hours: what would begin in a blackout window by
    then is left for the next run.
    """

    template_fields = (*TriggerDagRunOperator.template_fields, "vm")

    def __init__(self, *, policy: str, vm: str = "", **kwargs: Any) -> None:
        super().__init__(
            trigger_dag_id="nas_backup",
            wait_for_completion=True,
            deferrable=True,
            poke_interval=10,
            **kwargs,
        )
        self.policy = policy
        self.vm = vm

    def execute(self, context: Context) -> None:
        from nasbackup.fleet.last_valid import last_valid

        opens = last_valid().policy(self.policy).opens(datetime.now(UTC))
        if opens > datetime.now(UTC) and not context["params"]["ignore_blackout"]:
            raise AirflowSkipException(f"A blackout window until {opens:%H:%M %Z}: {self.vm} is left for the next run.")
        if context["ti"].try_number > 1:  # somebody has cleared it: the run of the first try is there
            self.trigger_run_id = f"{self.trigger_run_id}__{context['ti'].try_number}"
        super().execute(context)
