"""One more run, when a backup failed only because its VM was started or stopped meanwhile."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

SUFFIX = "__again"


class TryAgainOperator(TriggerDagRunOperator):
    """Trigger the same DAG with the same params, once.

    ``ending``: the result of end_job. A retry of one task would not do: the new run takes a new point in time.
    """

    template_fields = (*TriggerDagRunOperator.template_fields, "ending")

    def __init__(self, *, ending: Any, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id="", skip_when_already_exists=True, **kwargs)
        self.ending = ending

    def execute(self, context: Context) -> None:
        run = context["dag_run"]
        if not self.ending["try_again"]:
            raise AirflowSkipException("Nothing to try again.")
        if run.run_id.endswith(SUFFIX):
            raise AirflowSkipException("This run was the second try: the VM comes and goes too often.")
        self.trigger_dag_id = run.dag_id
        self.trigger_run_id = run.run_id + SUFFIX
        self.conf = dict(context["params"])
        super().execute(context)
