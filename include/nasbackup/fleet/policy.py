"""What is promised, and for which VMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

from nasbackup.errors import UnknownHost, UnknownPolicy
from nasbackup.fleet.blackout import Blackout, open_at
from nasbackup.fleet.units import speed
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Quiesce
from nasbackup.retention.capacity import Thresholds
from nasbackup.retention.rules import Guard, RetentionRules, Unprotected
from nasbackup.sla.channels import Channel


@dataclass(frozen=True, kw_only=True)
class Zone:
    """``host_slots``: how many backups run at once on one of its hosts. ``repository_slots``: how many volumes are
    copied to, or read back from, one of its repositories at once. They are the sizes of Airflow's pools. ``spread``:
    new VMs go to any of the repositories, not to the first.
    """

    name: str
    hosts: tuple[str, ...]
    repositories: tuple[str, ...]
    host_slots: int = 2
    repository_slots: int = 8
    spread: bool = False

    @property
    def default(self) -> str | None:
        """The repository of a backup that names none; None: the VMs are spread, and only a VM's own is right."""
        return None if self.spread else self.repositories[0]


@dataclass(frozen=True, kw_only=True)
class Rpo:
    """How old the newest restorable backup may get. ``warn_after`` is not longer than ``error_after``."""

    error_after: timedelta
    warn_after: timedelta


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Each list that is not empty has to match: any of its globs.

    ``metadata``: namespace URI -> glob of the text in the domain's ``<metadata>`` element of this namespace (libvirt,
    "General metadata").
    """

    vms: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    zones: tuple[str, ...] = ()

    def matches(self, *, vm: str, title: str, metadata: Mapping[str, str], zone: str | None) -> bool:
        return (
            (not self.zones or zone in self.zones)
            and is_chosen(vm, self.vms)
            and is_chosen(title, self.titles)
            and all(fnmatchcase(metadata.get(uri, ""), glob) for uri, glob in self.metadata.items())
        )


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What was promised for the VMs that it matches: the first policy of fleet.yaml that does is the VM's.

    Without ``schedule`` nothing begins its backups by itself; without ``rpo`` any age is fine.
    """

    name: str
    selector: Selector
    timezone: str = "UTC"
    schedule: tuple[str, ...] = ()
    """Cron expressions, in ``timezone``."""
    blackout: tuple[Blackout, ...] = ()
    repository: str | None = None
    """None: that of the VM's zone."""
    rpo: Rpo | None = None
    slo: float = 99.0
    """Percent of the time in which the RPO has to hold."""
    deadline: timedelta | None = None
    """How long one backup may take, from its run's beginning."""
    retention: RetentionRules = field(default_factory=RetentionRules)
    quiesce: Quiesce = Quiesce.OFF
    allow_encrypted: bool = False
    compression: Compression = Compression.NONE
    bandwidth: int | None = None
    """Bytes a second of each volume; None: no limit."""
    verify_level: VerifyLevel = VerifyLevel.FULL
    verify_every: timedelta | None = None
    """How long ago the layers of the newest backup may have been read back."""
    drill_every: timedelta | None = None

    def params(self) -> dict[str, Any]:
        """How a backup of one of its VMs is made, as the form of ``nas_backup`` takes it."""
        return {
            "quiesce": self.quiesce.value,
            "allow_encrypted": self.allow_encrypted,
            "compression": self.compression.value,
            "bandwidth": None if self.bandwidth is None else speed(self.bandwidth),
            "verify": self.verify_level.value,
        }

    def opens(self, now: datetime) -> datetime:
        """When a backup may be begun: ``now``, or the end of the blackout window that it is in."""
        return open_at(self.blackout, now, timezone=self.timezone)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    zones: tuple[Zone, ...]
    policies: tuple[Policy, ...] = ()
    unprotected: Unprotected = field(default_factory=Unprotected)
    guard: Guard = field(default_factory=Guard)
    capacity: Thresholds = field(default_factory=Thresholds)
    channels: tuple[Channel, ...] = ()

    @property
    def hosts(self) -> list[str]:
        return [host for zone in self.zones for host in zone.hosts]

    @property
    def repositories(self) -> list[str]:
        return list(dict.fromkeys(name for zone in self.zones for name in zone.repositories))

    def zone_of(self, host: str) -> Zone:
        """The zone that the host belongs to. Raises UnknownHost."""
        zone = self.find_zone(host)
        if zone is None:
            raise UnknownHost(host=host, known=", ".join(self.hosts) or "none")
        return zone

    def find_zone(self, host: str) -> Zone | None:
        return next((zone for zone in self.zones if host in zone.hosts), None)

    def zone_name(self, host: str) -> str | None:
        """None for a host that fleet.yaml does not name (any more)."""
        zone = self.find_zone(host)
        return zone.name if zone is not None else None

    def policy_of(
        self, *, vm: str, host: str, title: str = "", metadata: Mapping[str, str] | None = None
    ) -> Policy | None:
        """The first policy that matches the VM; None: it is unprotected."""
        zone = self.zone_name(host)
        for policy in self.policies:
            if policy.selector.matches(vm=vm, title=title, metadata=metadata or {}, zone=zone):
                return policy
        return None

    def policy(self, name: str) -> Policy:
        """The policy of this name. Raises UnknownPolicy."""
        for policy in self.policies:
            if policy.name == name:
                return policy
        raise UnknownPolicy(policy=name, known=", ".join(policy.name for policy in self.policies) or "none")

    def zones_of(self, policy: Policy) -> tuple[Zone, ...]:
        """Where the VMs of the policy can be."""
        return tuple(zone for zone in self.zones if not policy.selector.zones or zone.name in policy.selector.zones)

    def repository_of(self, policy: Policy, *, host: str, vm_uuid: str, holds: str) -> str:
        """Where the backups of one of the policy's VMs on this host go. Raises UnknownHost.

        ``holds``: the repository of its newest backup, with which its chain goes on wherever the zone spreads its VMs;
        empty: it has none. Which repository a VM gets then is told by its UUID and by nothing else: it is the same
        whoever asks, and one that comes to the zone takes from each of the others as many as from the next.
        """
        if policy.repository is not None:
            return policy.repository
        zone = self.zone_of(host)
        if zone.default is not None:
            return zone.default
        if holds in zone.repositories:
            return holds
        return max(zone.repositories, key=lambda name: sha256(f"{vm_uuid} {name}".encode()).digest())


def is_chosen(name: str, globs: Sequence[str]) -> bool:
    """Whether one of the globs matches; without any every name is chosen."""
    return not globs or any(fnmatchcase(name, glob) for glob in globs)
