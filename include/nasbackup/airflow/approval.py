"""Somebody is asked before a run deletes unusually much; otherwise nobody is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context

from nasbackup.answers import ANSWERED_WITHIN

PATIENCE = ANSWERED_WITHIN - timedelta(hours=4)
"""An answer that has not come by then is a no: the next daily run asks again, with what is true then."""


class ApproveWhenAsked(ApprovalOperator):
    """Its result is ``work``, once it is approved, for the task that is mapped over it.

    ``question``: why somebody has to be asked; empty when nobody has to. On "Reject" what follows is skipped.
    """

    template_fields = (*ApprovalOperator.template_fields, "question", "work")

    def __init__(self, *, question: Any, work: Any, **kwargs: Any) -> None:
        super().__init__(response_timeout=PATIENCE, defaults=self.REJECT, **kwargs)
        self.question = question
        self.work = work

    def execute(self, context: Context) -> Any:
        if not self.question:
            return self.work
        self.subject = f"{context['dag'].dag_id}: {self.question}. Shall it?"
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        answer = super().execute_complete(context=context, event=event)
        return self.work if answer["chosen_options"] == [self.APPROVE] else []
