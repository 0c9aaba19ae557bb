"""Bodies of the tasks of ``nas_sla_watch`` that tell people (one per channel of fleet.yaml) and Airflow's metrics."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from nasbackup import fleet
from nasbackup.airflow import hooks, measures, notify
from nasbackup.errors import UnknownChannel
from nasbackup.sla.channels import Channel
from nasbackup.steps import alerts
from nasbackup.steps.metrics import measure

log = logging.getLogger(__name__)


def deliver(*, channel: str) -> dict[str, Any]:
    """Tell what is pending for the channel. Raises AlertNotDelivered, and the next look tries again;
    UnknownChannel when fleet.yaml has changed meanwhile."""
    found = _channel(channel)
    done = alerts.deliver(hooks.catalog(), channel=found, send=notify.sender(found), now=datetime.now(UTC))
    log.info("%s: %d notices in %d messages", channel, done.notices, done.messages)
    return asdict(done)


def emit() -> None:
    """The fleet's numbers through Airflow's metrics: the last step of a look."""
    measures.emit(measure(hooks.catalog(), now=datetime.now(UTC)))


def _channel(name: str) -> Channel:
    channels = fleet.load().channels
    for channel in channels:
        if channel.name == name:
            return channel
    raise UnknownChannel(channel=name, known=", ".join(channel.name for channel in channels) or "none")
