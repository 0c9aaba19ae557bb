"""Where alerts go, as fleet.yaml names it: a channel is one of Airflow's notifiers with a Connection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nasbackup.sla.findings import Severity


class ChannelType(StrEnum):
    SMTP = "smtp"
    WEBHOOK = "webhook"  # JSON, by POST
    APPRISE = "apprise"  # chat, pagers and a hundred more


@dataclass(frozen=True, kw_only=True)
class Channel:
    """``connection`` is the id of the Airflow Connection that holds address and secrets.

    ``to`` and ``sender`` are for smtp, ``endpoint`` (a path below the Connection's address) for webhook, ``tag`` for
    apprise. Alerts below ``severity`` do not go there; ``zones`` and ``policies`` limit it to their VMs (empty: all).
    """

    name: str
    type: ChannelType
    connection: str
    to: tuple[str, ...] = ()
    sender: str = ""
    endpoint: str = ""
    tag: str = "all"
    severity: Severity = Severity.WARNING
    zones: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()

    def wants(self, *, severity: Severity, zone: str | None, policy: str | None) -> bool:
        """Whether an alert of a VM (or, both None, of a host or repository) goes there."""
        if self.severity is Severity.CRITICAL and severity is not Severity.CRITICAL:
            return False
        return (not self.zones or zone in self.zones) and (not self.policies or policy in self.policies)
