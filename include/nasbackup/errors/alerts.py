"""Alerts on their way to people."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError
from nasbackup.errors.request import RequestError


class AlertNotDelivered(NasBackupError):
    """Nothing is lost: what could not be told is told by a later look."""

    template = (
        "{count} notices could not be delivered through channel {channel}: {reason}. They are tried again at every "
        "look; correct the channel in fleet.yaml or its Connection {connection!r} under Admin > Connections."
    )
    retryable = True


class ChannelRefused(NasBackupError):
    """The other side said no, or there is no other side."""

    template = "{problem}"


class UnknownChannel(RequestError):
    template = "fleet.yaml has no channel {channel!r} under alerts.channels. Its channels: {known}."
