"""From a channel of fleet.yaml to one of Airflow's notifiers, which knows address and secrets by its Connection.

A notifier's ``notify`` is called, never the notifier itself: that would render subject and body as Jinja templates, and
in them are names that a VM's owner chose.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import apprise
import jinja2
from airflow.providers.apprise.notifications.apprise import AppriseNotifier
from airflow.providers.http.notifications.http import HttpNotifier
from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import BaseHook, BaseNotifier
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from nasbackup.errors import ChannelRefused
from nasbackup.sla.alerts import Event
from nasbackup.sla.channels import Channel, ChannelType
from nasbackup.sla.findings import Severity
from nasbackup.sla.messages import SHOWN, Notice, alerts_page, body, document, facts_of, in_order, one_line, rest, title

TIMEOUT = 30.0

_SHORTEST_SECRET = 4
"""Shorter words of a Connection's extra (``true``, a port) are not taken for secrets."""


def sender(channel: Channel) -> Callable[[Sequence[Notice]], None]:
    """What delivers one message to the channel. It raises ChannelRefused, without a secret in what it says."""

    def send(notices: Sequence[Notice]) -> None:
        try:
            connection = BaseHook.get_connection(channel.connection)
        except AirflowNotFoundException as error:
            raise ChannelRefused(problem=f"there is no Connection {channel.connection!r}") from error
        secrets = list(_secrets(connection))
        for secret in secrets:
            mask_secret(secret)  # in what the provider itself logs
        try:
            notifier(channel, notices, link=page()).notify({})
        except Exception as error:
            # Not chained: the original may quote the address, and with it what nobody should read.
            raise ChannelRefused(problem=_in_words(error, secrets=secrets)) from None

    return send


def page() -> str:
    """Address of the page that shows the fleet; empty when Airflow was not told its own address."""
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}/nasbackup" if base else ""


def notifier(channel: Channel, notices: Sequence[Notice], *, link: str) -> BaseNotifier:
    if channel.type is ChannelType.SMTP:
        return SmtpNotifier(
            smtp_conn_id=channel.connection,
            to=list(channel.to),
            from_email=channel.sender or None,
            subject=title(notices),
            html_content=mail(notices, link=link),
            custom_headers={"Auto-Submitted": "auto-generated"},  # nobody's holiday reply is wanted
        )
    if channel.type is ChannelType.WEBHOOK:
        return StrictHttpNotifier(
            http_conn_id=channel.connection,
            endpoint=channel.endpoint,
            json=document(notices, link=link),
            extra_options={"timeout": TIMEOUT, "allow_redirects": False},
        )
    return StrictAppriseNotifier(
        apprise_conn_id=channel.connection,
        title=title(notices),
        body=body(notices, link=link),
        notify_type=_notify_type(notices),
        tag=channel.tag,
        interpret_escapes=False,
    )


class StrictHttpNotifier(HttpNotifier):
    """A redirected POST becomes a GET that says 200 and delivers nothing, so a redirection is a refusal."""

    def notify(self, context: Any) -> None:
        response = self.hook.run(endpoint=self.endpoint, json=self.json, extra_options=self.extra_options)
        if response.is_redirect:
            raise ChannelRefused(problem=f"it answered {response.status_code}, a redirection: name the final address")


class StrictAppriseNotifier(AppriseNotifier):
    """The provider's hook (2.4.1) drops what apprise answers, and a failure with it. Until it does not:"""

    def notify(self, context: Any) -> None:
        services = apprise.Apprise()
        self.hook.set_config_from_conn(conn=self.hook.get_connection(self.apprise_conn_id), apprise_obj=services)
        if not len(services):
            raise ChannelRefused(problem="its Connection names no address that apprise understands")
        if not any(services.find(tag=self.tag)):
            raise ChannelRefused(problem=f"no address of its Connection has the tag {self.tag!r}")
        taken = services.notify(
            body=self.body,
            title=self.title or "",
            notify_type=self.notify_type,
            body_format=self.body_format,
            tag=self.tag,
            interpret_escapes=self.interpret_escapes,
        )
        if not taken:
            raise ChannelRefused(problem="a service did not take it; the task's log says which")


def mail(notices: Sequence[Notice], *, link: str) -> str:
    """The mail's HTML; everything in it is escaped."""
    shown = [facts_of(notice) for notice in in_order(notices)[:SHOWN]]
    return _template().render(title=title(notices), notices=shown, rest=rest(notices), link=alerts_page(link))


def _template() -> jinja2.Template:
    text = (importlib.resources.files("nasbackup.airflow") / "alert_mail.html.jinja").read_text()
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def _notify_type(notices: Sequence[Notice]) -> apprise.NotifyType:
    lasting = [notice for notice in notices if notice.event is not Event.CLOSED]
    if not lasting:
        forgotten = any(notice.forgotten for notice in notices)
        return apprise.NotifyType.WARNING if forgotten else apprise.NotifyType.SUCCESS
    critical = any(notice.severity is Severity.CRITICAL for notice in lasting)
    return apprise.NotifyType.FAILURE if critical else apprise.NotifyType.WARNING


def _in_words(error: Exception, *, secrets: Sequence[str]) -> str:
    """The reason in one line of a bearable length, without what its Connection holds."""
    words = str(error) if isinstance(error, ChannelRefused) else f"{type(error).__name__}: {error}"
    for secret in sorted(secrets, key=len, reverse=True):
        words = words.replace(secret, "***")
    return one_line(words)[:500]


def _secrets(connection: Any) -> Iterator[str]:
    """What of a Connection nobody should read: the password, all of its extra, and the path of its address (chats
    have addresses that let in whoever knows them)."""
    if connection.password:
        yield connection.password
    host = connection.host or ""
    path = urlsplit(host if "://" in host else f"//{host}").path.strip("/")
    if len(path) >= _SHORTEST_SECRET:
        yield path
    yield from _leaves(connection.extra_dejson)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    elif isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
        yield value
        if value.lstrip().startswith(("{", "[")):  # apprise's config is JSON in JSON when it comes from the form
            try:
                yield from _leaves(json.loads(value))
            except ValueError:
                return
