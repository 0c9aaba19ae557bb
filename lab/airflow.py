"""A client of a stack's Airflow: its public REST API, as any operator's script would use it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

FINISHED = frozenset({"success", "failed"})


class AirflowError(Exception):
    """Airflow refused a request, or a run did not end as it should."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task instance; ``label`` is the map index as the UI shows it."""

    task_id: str
    map_index: int
    label: str
    state: str | None
    try_number: int

    @property
    def title(self) -> str:
        return f"{self.task_id}[{self.label}]" if self.map_index >= 0 else self.task_id


@dataclass(kw_only=True)
class Airflow:
    """The API with a login. Times are seconds."""

    url: str
    user: str = "admin"
    password: str = field(repr=False)
    _client: httpx.Client | None = field(default=None, repr=False)

    @classmethod
    def of_stack(cls, *, user: str = "admin") -> Airflow:
        """The stack whose environment this process runs in (scripts/demo, scripts/test)."""
        passwords = json.loads(Path(os.environ["NASBACKUP_AIRFLOW_PASSWORDS"]).read_text())
        return cls(url=os.environ["NASBACKUP_AIRFLOW_API"], user=user, password=passwords[user])

    def request(self, method: str, path: str, *, missing_ok: bool = False, **arguments: Any) -> Any:
        """One call below /api/v2; the answer's JSON, None for a 404 that is fine. Raises AirflowError."""
        response = self._session().request(method, f"/api/v2{path}", **arguments)
        if missing_ok and response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_error:
            raise AirflowError(f"{method} {path}: {response.status_code} {response.text[:500]}")
        return response.json() if response.content else None

    def put_connection(self, *, connection_id: str, conn_type: str, extra: Mapping[str, Any]) -> None:
        body = {"connection_id": connection_id, "conn_type": conn_type, "extra": json.dumps(extra)}
        if self.request("GET", f"/connections/{connection_id}", missing_ok=True) is None:
            self.request("POST", "/connections", json=body)
        else:
            self.request("PATCH", f"/connections/{connection_id}", json=body)

    def put_variable(self, *, key: str, value: str) -> None:
        body = {"key": key, "value": value}
        if self.request("GET", f"/variables/{key}", missing_ok=True) is None:
            self.request("POST", "/variables", json=body)
        else:
            self.request("PATCH", f"/variables/{key}", json=body)

    def delete_variable(self, *, key: str) -> None:
        self.request("DELETE", f"/variables/{key}", missing_ok=True)

    def wait_for_dag(self, dag_id: str, *, containing: str = "", timeout: float = 120) -> None:
        """Until the dag-processor has parsed the DAG, in a version whose params speak of ``containing``."""
        deadline = time.monotonic() + timeout
        while True:
            details = self.request("GET", f"/dags/{dag_id}/details", missing_ok=True)
            if details is not None and containing in json.dumps(details["params"]):
                self.request("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
                return
            if time.monotonic() > deadline:
                errors = self.request("GET", "/importErrors")["import_errors"]
                raise AirflowError(f"no DAG {dag_id} after {timeout:g} s: {errors or 'no import error'}")
            time.sleep(0.5)

    def deadlines(self, dag_id: str) -> list[float]:
        """Seconds of the DAG's deadlines, as the UI shows them."""
        response = self._session().get(f"/ui/dags/{dag_id}/deadlineAlerts")
        if response.is_error:
            raise AirflowError(f"deadlines of {dag_id}: {response.status_code} {response.text[:500]}")
        return [alert["interval"] for alert in response.json()["deadline_alerts"]]

    def trigger(self, dag_id: str, *, conf: Mapping[str, Any]) -> str:
        """Start a run by hand; returns its id. Raises AirflowError when a param is refused."""
        body = {"conf": dict(conf), "logical_date": None}
        return str(self.request("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def tasks(self, dag_id: str, run_id: str) -> list[Task]:
        found = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 100})
        return [
            Task(
                task_id=task["task_id"],
                map_index=task["map_index"],
                label=task["rendered_map_index"] or str(task["map_index"]),
                state=task["state"],
                try_number=task["try_number"],
            )
            for task in found["task_instances"]
        ]

    def wait(
        self, dag_id: str, run_id: str, *, timeout: float = 600, on_change: Callable[[Task], None] = lambda _: None
    ) -> str:
        """Until the run has ended; returns its state. ``on_change`` hears of every task that changes its state."""
        seen: dict[tuple[str, int], str | None] = {}
        deadline = time.monotonic() + timeout
        while True:
            state = str(self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])
            for task in self.tasks(dag_id, run_id):
                key = task.task_id, task.map_index
                if seen.get(key) != task.state:
                    seen[key] = task.state
                    on_change(task)
            if state in FINISHED:
                return state
            if time.monotonic() > deadline:
                raise AirflowError(f"{dag_id} {run_id} is {state} after {timeout:g} s: {self.tasks(dag_id, run_id)}")
            time.sleep(0.2)

    def result(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> Any:
        """What a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        value = self.request("GET", path, params={"map_index": map_index, "deserialize": False})["value"]
        return json.loads(value) if isinstance(value, str) else value

    def answer(self, dag_id: str, run_id: str, task_id: str, *, choice: str, timeout: float = 120) -> str:
        """Answer whenever the task asks somebody, until it has ended; returns the question.

        Not at once: for a moment after the task begins to wait, the scheduler takes a resumed one for lost (Airflow
        3.3), and it asks again.
        """
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"
        subject = ""
        deadline = time.monotonic() + timeout
        while True:
            state = next((task.state for task in self.tasks(dag_id, run_id) if task.task_id == task_id), None)
            if state == "awaiting_input":
                time.sleep(3)
                asked = self.request("GET", path)
                if not asked["response_received"]:
                    subject = str(asked["subject"])
                    self.request("PATCH", path, json={"chosen_options": [choice]})
            elif subject and state in FINISHED:
                return subject
            if time.monotonic() > deadline:
                raise AirflowError(f"{task_id} of {run_id} is {state} after {timeout:g} s")
            time.sleep(0.5)

    def log(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> str:
        """Of the last try."""
        tries = [t.try_number for t in self.tasks(dag_id, run_id) if (t.task_id, t.map_index) == (task_id, map_index)]
        try_number = max(tries, default=1)
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        return json.dumps(self.request("GET", path, params={"map_index": map_index})["content"])

    def _session(self) -> httpx.Client:
        if self._client is None:
            # The stack is on this machine: a proxy of the environment has nothing to do with it.
            client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
            answer = client.post("/auth/token", json={"username": self.user, "password": self.password})
            if answer.is_error:
                raise AirflowError(f"login as {self.user}: {answer.status_code} {answer.text[:200]}")
            client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            self._client = client
        return self._client
