"""From an alert to a mail, a POST and a chat: a real SMTP server and a real HTTP listener take them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from nasbackup.airflow import alert_tasks, notify
from nasbackup.catalog import Database
from nasbackup.errors import AlertNotDelivered, ChannelRefused, UnknownChannel
from nasbackup.sla import LOOK_EVERY
from nasbackup.sla.alerts import Event
from nasbackup.sla.channels import Channel, ChannelType
from nasbackup.sla.findings import Severity, Subject, SubjectKind
from nasbackup.sla.messages import SHOWN, Notice
from nasbackup.steps.alerts import settle

from tests.alert_book import BEGIN, EAST, EVERYTHING, finding

PASSWORD = "correct-horse-battery"
TOKEN = "T0KEN-of-the-chat"
HOSTILE = "i-2\r\nBcc: all@example.org\r\n\r\n<script>alert('{{ 7 * 6 }}')</script>\u202e"

MAIL = Channel(
    name="mail",
    type=ChannelType.SMTP,
    connection="smtp_ops",
    to=("ops@example.org", "night@example.org"),
    sender="backup@example.org",
)
PAGER = Channel(name="pager", type=ChannelType.WEBHOOK, connection="http_pager", endpoint="/hooks/nas")
CHAT = Channel(name="chat", type=ChannelType.APPRISE, connection="chat", tag="ops")


@dataclass
class MailServer:
    """Takes mail from who logs in. ``refuses``: what it says to a message."""

    mails: list[tuple[list[str], Message]] = field(default_factory=list)
    refuses: str = ""
    port: int = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuses:
            return self.refuses
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=default)))
        return "250 OK"


class AnyPort(Controller):
    """aiosmtpd tries its server out at the port it asked for, which for 0 is another one."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@pytest.fixture
def mail_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailServer]:
    server = MailServer()

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, login: Any) -> AuthResult:
        known = (login.login, login.password) == (b"backup", PASSWORD.encode())
        return AuthResult(success=known, handled=False)

    controller = AnyPort(
        server,
        hostname="127.0.0.1",
        port=0,
        authenticator=authenticate,
        auth_required=True,
        auth_require_tls=False,
        ready_timeout=60,
    )
    controller.start()
    server.port = controller.port
    connect_mail(monkeypatch, server.port)
    yield server
    controller.stop()


def connect_mail(monkeypatch: pytest.MonkeyPatch, port: int, password: str = PASSWORD) -> None:
    connect(
        monkeypatch,
        "smtp_ops",
        conn_type="smtp",
        host="127.0.0.1",
        port=port,
        login="backup",
        password=password,
        extra={"disable_ssl": True, "disable_tls": True, "retry_limit": 0},
    )


def connect(monkeypatch: pytest.MonkeyPatch, name: str, **connection: Any) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))


@dataclass
class Listener:
    port: int = 0
    answer: int = 200
    posts: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    heard = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            heard.posts.append((self.path, dict(self.headers), json.loads(content)))
            self.send_response(heard.answer)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    heard.port = server.server_address[1]
    extra = {"X-Token": TOKEN}
    connect(monkeypatch, "http_pager", conn_type="http", host="127.0.0.1", port=heard.port, extra=extra)
    connect_chat(monkeypatch, heard.port)
    yield heard
    server.shutdown()
    thread.join()
    server.server_close()


def connect_chat(monkeypatch: pytest.MonkeyPatch, port: int, tag: str = "ops") -> None:
    config = [{"path": f"json://127.0.0.1:{port}/{TOKEN}", "tag": tag}]
    connect(monkeypatch, "chat", conn_type="apprise", extra={"config": json.dumps(config)})


@pytest.fixture(autouse=True)
def airflow_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/")


def notice(number: int = 1, *, event: Event = Event.OPENED, label: str = EAST.label, **changes: Any) -> Notice:
    subject = Subject(kind=SubjectKind.VM, key=EAST.key, label=label)
    found = finding(subject=subject, **changes)
    closed_at = BEGIN + LOOK_EVERY if event is Event.CLOSED else None
    return Notice(delivery_id=number, alert_id=number, event=event, opened_at=BEGIN, closed_at=closed_at, **vars(found))


def html_of(message: Any) -> str:
    return str(message.get_body(("html",)).get_content())


def test_a_mail_says_what_is_wrong_and_what_to_do(mail_server: MailServer) -> None:
    notify.sender(MAIL)([notice(severity=Severity.CRITICAL)])
    ((recipients, mail),) = mail_server.mails
    assert recipients == ["ops@example.org", "night@example.org"]
    assert mail["From"] == "backup@example.org"
    assert mail["Subject"] == "[NAS backup] CRITICAL: i-2-1-VM: The newest restorable backup is 27 hours old."
    assert mail["Auto-Submitted"] == "auto-generated"
    html = html_of(mail)
    assert "Look at the VM&#39;s last runs." in html
    assert 'href="https://airflow.example.org/nasbackup/alerts"' in html


def test_a_hostile_name_breaks_no_mail(mail_server: MailServer) -> None:
    """No header of its own, no HTML, no template, and no recipient."""
    notify.sender(MAIL)([notice(label=HOSTILE, text=HOSTILE, hint=HOSTILE)])
    ((recipients, mail),) = mail_server.mails
    assert recipients == ["ops@example.org", "night@example.org"]
    assert mail["Bcc"] is None
    assert "Bcc: all@example.org <script>" in mail["Subject"]
    html = html_of(mail)
    assert "<script" not in html
    assert "{{ 7 * 6 }}" in html, "a name is not a template"
    assert html.count("Bcc: all@example.org &lt;script&gt;") == 5


def test_a_mail_for_many_lists_the_first(mail_server: MailServer) -> None:
    notify.sender(MAIL)([notice(number, label=f"vm-{number:03}-x") for number in range(SHOWN + 30)])
    ((_, mail),) = mail_server.mails
    assert mail["Subject"] == "[NAS backup] 130 warning"
    html = html_of(mail)
    assert (html.count("What to do:"), "… and 30 more" in html) == (SHOWN, True)


def test_a_post_carries_the_whole_alert(listener: Listener) -> None:
    over = notice(2, event=Event.CLOSED, label=HOSTILE)
    notify.sender(PAGER)([over, notice(1, severity=Severity.CRITICAL)])
    ((path, headers, document),) = listener.posts
    assert path == "/hooks/nas"
    assert (headers["X-Token"], headers["Content-Type"]) == (TOKEN, "application/json")
    assert document["title"] == "[NAS backup] 1 critical, 1 over"
    first, second = document["alerts"]
    assert first == {
        "alert": 1,
        "event": "opened",
        "kind": "stale",
        "severity": "critical",
        "subject_kind": "vm",
        "subject": EAST.key,
        "label": "i-2-1-VM",
        "text": "The newest restorable backup is 27 hours old.",
        "hint": "Look at the VM's last runs.",
        "opened_at": "2026-01-31T22:00:00+00:00",
        "closed_at": None,
        "forgotten": False,
        "link": f"https://airflow.example.org/nasbackup/vms/{EAST.key}",
    }
    assert (second["event"], second["closed_at"]) == ("closed", "2026-01-31T22:05:00+00:00")
    assert second["label"] == HOSTILE


def test_a_chat_is_told_through_apprise(listener: Listener) -> None:
    for event, expected in ((Event.OPENED, "warning"), (Event.CLOSED, "success")):
        notify.sender(CHAT)([notice(event=event, label=HOSTILE)])
        path, _, document = listener.posts.pop()
        assert (path, document["type"]) == (f"/{TOKEN}", expected)
        assert document["title"].count("\n") == 0
        assert "{{ 7 * 6 }}" in document["message"]
    notify.sender(CHAT)([notice(severity=Severity.CRITICAL)])
    assert listener.posts.pop()[2]["type"] == "failure"


def refusal(channel: Channel, caplog: pytest.LogCaptureFixture) -> str:
    """Why the channel refused; neither that nor the log holds a secret."""
    with caplog.at_level(logging.DEBUG), pytest.raises(ChannelRefused) as refused:
        notify.sender(channel)([notice()])
    words = str(refused.value)
    assert refused.value.__cause__ is None or words.startswith("there is no Connection")
    for secret in (PASSWORD, TOKEN):
        assert secret not in words
    assert len(words.splitlines()) == 1
    return words


def test_who_does_not_take_it_says_why(
    mail_server: MailServer, listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mail_server.refuses = "452 no space on the mail server"
    assert "no space on the mail server" in refusal(MAIL, caplog)
    connect_mail(monkeypatch, mail_server.port, password="wrong-" + PASSWORD)
    assert "SMTPAuthenticationError" in refusal(MAIL, caplog)
    listener.answer = 503
    assert "503" in refusal(PAGER, caplog)
    assert "a service did not take it" in refusal(CHAT, caplog)
    listener.answer = 302
    assert "302, a redirection" in refusal(PAGER, caplog)
    listener.answer = 200
    connect_chat(monkeypatch, listener.port, tag="others")
    assert "no address of its Connection has the tag 'ops'" in refusal(CHAT, caplog)
    connect(monkeypatch, "chat", conn_type="apprise", extra={"config": '[{"path": "nonsense", "tag": "ops"}]'})
    assert "no address that apprise understands" in refusal(CHAT, caplog)


def test_who_is_not_there_is_told_without_the_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("SMTP_OPS", "HTTP_PAGER"):
        monkeypatch.delenv(f"AIRFLOW_CONN_{name}", raising=False)
    assert refusal(MAIL, caplog) == "there is no Connection 'smtp_ops'"
    connect_mail(monkeypatch, port=9)
    assert "Connection refused" in refusal(MAIL, caplog)
    connect(monkeypatch, "http_pager", conn_type="http", host=f"http://127.0.0.1:9/services/{TOKEN}")
    words = refusal(PAGER, caplog)
    assert "Connection refused" in words
    assert "/***/hooks/nas" in words


FLEET = """
zones:
  default: {hosts: [kvm_test], repositories: [nas_test]}
alerts:
  channels:
    mail: {type: smtp, connection: smtp_ops, to: [ops@example.org], sender: backup@example.org}
    pager: {type: webhook, connection: http_pager, endpoint: /hooks/nas, severity: critical}
"""


@pytest.fixture
def fleet_and_catalog(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    monkeypatch.setenv("NASBACKUP_FLEET", str(file))
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    return database


def test_from_a_look_to_the_people(fleet_and_catalog: Database, mail_server: MailServer, listener: Listener) -> None:
    """fleet.yaml, catalog, Connections, servers: as the tasks of nas_sla_watch do it."""
    from nasbackup import fleet

    channels = fleet.load().channels

    def look(*found: Any, minutes: int) -> None:
        now = BEGIN + LOOK_EVERY * minutes
        settle(fleet_and_catalog, findings=found, looked_at=EVERYTHING, channels=channels, now=now)

    look(finding(), minutes=0)
    mail_server.refuses = "451 try again"
    with pytest.raises(AlertNotDelivered, match=r"^Channel mail took no message \(.*451.*try again"):
        alert_tasks.deliver(channel="mail")
    mail_server.refuses = ""
    assert alert_tasks.deliver(channel="mail") == {"channel": "mail", "notices": 1, "messages": 1, "busy": False}
    assert alert_tasks.deliver(channel="mail")["messages"] == 0, "told once"
    assert alert_tasks.deliver(channel="pager")["messages"] == 0, "a warning is nothing for the pager"
    look(finding(severity=Severity.CRITICAL), minutes=1)
    look(minutes=2)
    for name in ("mail", "pager"):
        alert_tasks.deliver(channel=name)
    assert [mail["Subject"].split(":")[0] for _, mail in mail_server.mails] == [
        "[NAS backup] WARNING",
        "[NAS backup] OVER",
    ], "that it was critical in between is over before it could be told"
    assert listener.posts == [], "and over before the pager was told"


def test_a_channel_that_went_meanwhile(fleet_and_catalog: Database) -> None:
    with pytest.raises(UnknownChannel, match=r"no channel 'gone'.*mail, pager"):
        alert_tasks.deliver(channel="gone")
