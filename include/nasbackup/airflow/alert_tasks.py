"""Bodies of the tasks of ``nas_sla_watch`` that tell people (one per channel of fleet.yaml) and Airflow's metrics."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from nasbackup.airflow import hooks, measures, notify
from nasbackup.catalog import Database
from nasbackup.errors import UnknownChannel
from nasbackup.fleet.last_valid import last_valid
from nasbackup.sla.channels import Channel
from nasbackup.steps import alerts
from nasbackup.steps.measure import measure_hourly
from nasbackup.steps.metrics import measure
from nasbackup.steps.ticket import Store

log = logging.getLogger(__name__)


def deliver(*, channel: str) -> dict[str, Any]:
    """Tell what is pending for the channel. Raises AlertNotDelivered, and the next look tries again;
    UnknownChannel when fleet.yaml has changed meanwhile."""
    found = _channel(channel)
    done = alerts.deliver(hooks.catalog(), channel=found, send=notify.sender(found), now=datetime.now(UTC))
    log.info("%s: %d notices in %d messages", channel, done.notices, done.messages)
    return asdict(done)


def emit() -> None:
    """The fleet's numbers through Airflow's metrics: after each look."""
    measures.emit(measure(hooks.catalog(), now=datetime.now(UTC)))


def measure_repositories() -> None:
    """How full they are, once an hour. Raises FleetInvalid, CatalogUnreachable.

    After the look, and begun for two minutes at most, so that a NAS that does not answer holds up no verdict: what is
    found of it is the next look's.
    """
    database = hooks.catalog()
    stores = {name: partial(_store, database, name=name) for name in last_valid().repositories}
    measure_hourly(database, stores=stores, now=database.now())


def _store(database: Database, *, name: str) -> Store:
    """Raises UnknownRepository, ConnectionInvalid."""
    return Store(database=database, repository=hooks.NasHook(nas_conn_id=name).get_conn())


def _channel(name: str) -> Channel:
    channels = last_valid().channels
    for channel in channels:
        if channel.name == name:
            return channel
    raise UnknownChannel(channel=name, known=", ".join(channel.name for channel in channels) or "none")
