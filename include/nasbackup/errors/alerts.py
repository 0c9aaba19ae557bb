"""Alerts on their way to people."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError
from nasbackup.errors.request import RequestError


class AlertNotDelivered(NasBackupError):
    """Nothing is lost: what could not be told is told by a later look."""

    template = (
        "Channel {channel} took no message ({reason}). Alerts to be told through it: {count}; that is tried again at "
        "every look. Correct the channel in fleet.yaml, or its Connection {connection!r} under Admin > Connections."
    )
    retryable = True


class ChannelRefused(NasBackupError):
    """The other side said no, or there is no other side."""

    template = "{problem}"


class UnknownChannel(RequestError):
    template = "fleet.yaml has no channel {channel!r} under alerts.channels. Its channels: {known}."
