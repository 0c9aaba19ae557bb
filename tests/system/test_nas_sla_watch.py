"""A breach of an SLA, a deadline that passes, a wrong fleet.yaml: a real scheduler sees them, real servers are told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import vm as lab
from tests.integration.test_notify import AnyPort
from tests.system.conftest import Plant, stopped_copy

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MIB = 1 << 20


class Mailbox:
    """What an SMTP server was given."""

    def __init__(self) -> None:
        self.mails: list[str] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.mails.append(envelope.content.decode())
        return "250 OK"


@contextmanager
def listener() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Its port, and the JSON documents that were posted to it."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, posted
        server.shutdown()


def watch(plant: Plant) -> dict[str, Any]:
    """A look by hand, to its end."""
    run_id = plant.airflow.trigger("nas_sla_watch", conf={})
    assert plant.airflow.wait("nas_sla_watch", run_id, timeout=180) == "success", plant.airflow.tasks(
        "nas_sla_watch", run_id
    )
    result: dict[str, Any] = plant.airflow.result("nas_sla_watch", run_id, "look")
    return result


def open_alerts(plant: Plant, machine: lab.LabVm) -> list[str]:
    with plant.database.transaction() as cursor:
        cursor.execute("SELECT kind FROM alert WHERE subject = %s AND closed_at IS NULL ORDER BY kind", (machine.uuid,))
        return [row["kind"] for row in cursor.fetchall()]


def about(label: str, posted: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(event, kind) of what a webhook heard of the VM, or of Airflow."""
    told = [alert for document in posted for alert in document["alerts"]]
    return [(alert["event"], alert["kind"]) for alert in told if alert["label"] == label]


def put_hook(plant: Plant, *, port: int) -> None:
    """The Connection of a channel that posts to this port."""
    plant.airflow.put_connection(connection_id="http_test", conn_type="http", extra={})
    plant.airflow.request(
        "PATCH",
        "/connections/http_test",
        json={"connection_id": "http_test", "conn_type": "http", "host": "127.0.0.1", "port": port},
    )


def test_a_breach_is_told_once_and_so_is_its_end(
    plant: Plant, make_vm: Callable[..., lab.LabVm], fleet_file: Path
) -> None:
    machine = make_vm("breach", 8 * MIB)
    mailbox = Mailbox()
    smtp = AnyPort(mailbox, hostname="127.0.0.1", port=0)
    smtp.start()
    try:
        with listener() as (port, posted):
            put_hook(plant, port=port)
            plant.airflow.put_connection(connection_id="smtp_test", conn_type="smtp", extra={})
            plant.airflow.request(
                "PATCH",
                "/connections/smtp_test",
                json={
                    "connection_id": "smtp_test",
                    "conn_type": "smtp",
                    "host": "127.0.0.1",
                    "port": smtp.port,
                    "extra": json.dumps({"disable_ssl": True, "disable_tls": True, "from_email": "backup@example.org"}),
                },
            )
            text = fleet_file.read_text().replace(
                "policies:\n", f'policies:\n  promised: {{vms: ["{machine.name}"], rpo: 2 hours}}\n', 1
            )
            text += (
                "alerts:\n  channels:\n    hook: {type: webhook, connection: http_test, endpoint: /hook}\n"
                "    mail: {type: smtp, connection: smtp_test, to: [ops@example.org], severity: critical}\n"
            )
            fleet_file.write_text(text)
            wait_for_channels(plant, 2)
            watch(plant)
            assert (open_alerts(plant, machine), about(machine.name, posted)) == ([], [])
            with plant.database.transaction() as cursor:
                cursor.execute(
                    "UPDATE vm SET first_seen_at = now() - interval '3 hours' WHERE uuid = %s", (machine.uuid,)
                )
            found = watch(plant)
            assert any(machine.name in sentence for sentence in found["worst"])
            assert open_alerts(plant, machine) == ["never_backed_up"]
            watch(plant)  # still so: nobody is told again
            assert about(machine.name, posted) == [("opened", "never_backed_up")]
            plant.backup_at_once(machine.name)
            watch(plant)
            assert open_alerts(plant, machine) == []
            assert about(machine.name, posted) == [("opened", "never_backed_up"), ("closed", "never_backed_up")]
    finally:
        smtp.stop()
    assert len([mail for mail in mailbox.mails if machine.name in mail]) == 2
    assert re.search(r"^To: .*ops@example\.org", mailbox.mails[0], re.MULTILINE)


def wait_for_channels(plant: Plant, count: int) -> None:
    """Until Airflow has read the channels: a version of the DAG that was not there before."""
    deadline = time.monotonic() + 120
    while True:
        run_id = plant.airflow.trigger("nas_sla_watch", conf={})
        plant.airflow.wait("nas_sla_watch", run_id, timeout=120)
        told = [
            task
            for task in plant.airflow.tasks("nas_sla_watch", run_id)
            if task.task_id == "deliver" and task.map_index >= 0
        ]
        if len(told) == count:
            return
        assert time.monotonic() < deadline, told
        time.sleep(5)


def test_a_run_that_takes_too_long_is_told_by_airflows_deadline_also_while_fleet_yaml_is_wrong(
    plant: Plant, make_vm: Callable[..., lab.LabVm], variable: Callable[[str, str], None], fleet_file: Path
) -> None:
    variable("nas.backup.deadline.seconds", "10")
    machine = make_vm("late", 64 * MIB)
    machine.guest_io("vda", f"write -P 5 0 {32 * MIB}")
    with listener() as (port, posted):
        put_hook(plant, port=port)
        channel = "hook: {type: webhook, connection: http_test, endpoint: /hook}"
        valid = fleet_file.read_text() + f"alerts:\n  channels:\n    {channel}\n"
        fleet_file.write_text(valid)
        wait_for_channels(plant, 1)
        wait_for(lambda: plant.airflow.deadlines("nas_backup") == [10], "Airflow has not read the DAG again")
        fleet_file.write_text(valid.replace("keep_last: 2", "keep_last: two"))
        run_id = plant.airflow.trigger("nas_backup", conf={"vm": machine.name})  # the host is the form's
        with stopped_copy(machine.name, file="root.vda", timeout=60):
            wait_for(lambda: "overdue" in open_alerts(plant, machine), "no deadline has passed")
            found = watch(plant)
            assert found["findings"]["fleet_invalid"] == 1
            assert ("opened", "overdue") in about(machine.name, posted)
            assert about("Airflow", posted)[-1] == ("opened", "fleet_invalid")
        assert plant.recorded(run_id)
        fleet_file.write_text(valid)
        with plant.database.transaction() as cursor:  # what was wrong with it was found a quarter of an hour ago
            cursor.execute(
                "UPDATE alert SET confirmed_at = confirmed_at - interval '15 minutes' WHERE closed_at IS NULL"
            )
        watch(plant)
        assert open_alerts(plant, machine) == ["unprotected"]
        assert ("closed", "overdue") in about(machine.name, posted)
        assert about("Airflow", posted)[-2:] == [("opened", "fleet_invalid"), ("closed", "fleet_invalid")]


def wait_for(happened: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(1)
