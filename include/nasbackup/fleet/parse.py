"""From the checked document to values: what a schema cannot say is checked here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nasbackup.errors import ParamInvalid
from nasbackup.fleet.blackout import Blackout, open_at
from nasbackup.fleet.document import Document, Path_
from nasbackup.fleet.policy import Fleet, Policy, Rpo, Selector, Zone
from nasbackup.fleet.units import duration, rate
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Quiesce
from nasbackup.retention.capacity import Thresholds
from nasbackup.retention.rules import Guard, RetentionRules, Span, Unprotected
from nasbackup.sla.channels import Channel, ChannelType
from nasbackup.sla.findings import Severity

T = TypeVar("T")


def parse(document: Document) -> Fleet:
    """Raises FleetInvalid."""
    content = document.content
    zones = tuple(_zone(name, zone) for name, zone in content["zones"].items())
    hosts = [host for zone in zones for host in zone.hosts]
    for host in hosts:
        if hosts.count(host) > 1:
            raise document.refuse(["zones"], f"host {host} is in more than one zone")
        twin = next((other for other in hosts if other != host and other.replace(".", "_") == host), None)
        if twin is not None:
            raise document.refuse(["zones"], f"hosts {host} and {twin} have the same name in Airflow's task groups")
    without_policies = Fleet(zones=zones)
    retention = content.get("retention", {})
    keep_orphaned = retention.get("keep_orphaned")
    policies = tuple(
        _Policy(document, name=name, fleet=without_policies).value() for name in content.get("policies", {})
    )
    return Fleet(
        zones=zones,
        policies=policies,
        unprotected=Unprotected(keep_orphaned=Span.parse(keep_orphaned) if keep_orphaned else None),
        guard=Guard(**_whole(retention.get("at_most", {}))),
        capacity=Thresholds(**_whole(content.get("capacity", {}))),
        channels=_channels(
            document, zones={zone.name for zone in zones}, policies={policy.name for policy in policies}
        ),
    )


def require_timezone(name: str, *, named: str) -> None:
    """Raises ParamInvalid."""
    try:
        if name in ("localtime", "posixrules"):
            raise ValueError("not the same on every machine")
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ParamInvalid(name=named, value=name, problem=f"there is no time zone {name!r}") from error


def _whole(document: Mapping[str, Any]) -> dict[str, int]:
    """To JSON Schema 7.0 is an integer as well."""
    return {name: int(value) for name, value in document.items()}


def _zone(name: str, document: Mapping[str, Any]) -> Zone:
    return Zone(
        name=name,
        hosts=tuple(document["hosts"]),
        repositories=tuple(document["repositories"]),
        **_whole({key: document[key] for key in ("host_slots", "repository_slots") if key in document}),
        spread=document.get("spread", False),
    )


class _Policy:
    """One policy's part of the document."""

    def __init__(self, document: Document, *, name: str, fleet: Fleet) -> None:
        self.document = document
        self.name = name
        self.fleet = fleet
        self.content: Mapping[str, Any] = document.content["policies"][name]

    def value(self) -> Policy:
        content = self.content
        timezone = self._each("timezone", content.get("timezone", "UTC"), _timezone)
        blackout = tuple(
            self._each(("blackout", index), text, Blackout.parse)
            for index, text in enumerate(content.get("blackout", ()))
        )
        if blackout:
            self._each("blackout", blackout, lambda windows: _leaves_time(windows, timezone))
        for index, zone in enumerate(content.get("zones", ())):
            if zone not in {known.name for known in self.fleet.zones}:
                raise self._refuse(("zones", index), f"there is no zone {zone!r}")
        if not any(content.get(key) for key in ("vms", "titles", "metadata")):
            raise self._refuse((), "it says nothing about which VMs it is for: add vms, titles or metadata")
        repository = content.get("repository")
        if repository is not None and repository not in self.fleet.repositories:
            known = ", ".join(self.fleet.repositories)
            raise self._refuse(("repository",), f"no zone has a repository {repository!r}; there are: {known}")
        return Policy(
            name=self.name,
            selector=Selector(
                vms=tuple(content.get("vms", ())),
                titles=tuple(content.get("titles", ())),
                metadata=dict(content.get("metadata", {})),
                zones=tuple(content.get("zones", ())),
            ),
            timezone=timezone,
            schedule=self._schedule(),
            blackout=blackout,
            repository=repository,
            rpo=self._rpo(),
            slo=float(content.get("slo", 99)),
            deadline=self._duration("deadline"),
            retention=RetentionRules.from_document(content.get("retention", {})),
            quiesce=Quiesce(content.get("quiesce", Quiesce.OFF)),
            allow_encrypted=content.get("allow_encrypted", False),
            compression=Compression(content.get("compression", Compression.NONE)),
            bandwidth=self._each("bandwidth", content["bandwidth"], rate) if "bandwidth" in content else None,
            verify_level=VerifyLevel(content.get("verify", {}).get("level", VerifyLevel.FULL)),
            verify_every=self._duration("verify", "every"),
            drill_every=self._duration("drill", "every"),
        )

    def _schedule(self) -> tuple[str, ...]:
        written = self.content.get("schedule", ())
        if isinstance(written, str):
            return (self._each("schedule", written, _cron),)
        return tuple(self._each(("schedule", index), text, _cron) for index, text in enumerate(written))

    def _rpo(self) -> Rpo | None:
        written = self.content.get("rpo")
        if written is None:
            return None
        if isinstance(written, str):
            span = self._each("rpo", written, duration)
            return Rpo(error_after=span, warn_after=span)
        error = self._each(("rpo", "error_after"), written["error_after"], duration)
        warn = self._each(("rpo", "warn_after"), written.get("warn_after", written["error_after"]), duration)
        if warn > error:
            raise self._refuse(("rpo", "warn_after"), "it is longer than error_after")
        return Rpo(error_after=error, warn_after=warn)

    def _duration(self, *path: str) -> Any:
        value: Any = self.content
        for part in path:
            if part not in value:
                return None
            value = value[part]
        return self._each(path, value, duration)

    def _each(self, path: str | Path_, value: Any, check: Callable[[Any], T]) -> T:
        try:
            return check(value)
        except ValueError as error:
            raise self._refuse((path,) if isinstance(path, str) else path, str(error)) from error

    def _refuse(self, path: Path_, problem: str) -> Exception:
        return self.document.refuse(["policies", self.name, *path], problem)


def _timezone(name: str) -> str:
    try:
        require_timezone(name, named="timezone")
    except ParamInvalid as error:
        raise ValueError(error.problem) from error
    return name


def _leaves_time(windows: Sequence[Blackout], timezone: str) -> None:
    """A week has no year: the windows of any one stand for all."""
    from datetime import UTC, datetime

    open_at(windows, datetime(2024, 1, 1, tzinfo=UTC), timezone=timezone)


def _cron(text: str) -> str:
    """Five fields, as cron has them."""
    from croniter import croniter

    if len(text.split()) != 5 or not croniter.is_valid(text):
        raise ValueError(f"{text!r} is no cron expression such as '0 22 * * *' (minute hour day month weekday)")
    return text


def _channels(document: Document, *, zones: set[str], policies: set[str]) -> tuple[Channel, ...]:
    found = []
    for name, channel in document.content.get("alerts", {}).get("channels", {}).items():
        for key, known in (("zones", zones), ("policies", policies)):
            for index, word in enumerate(channel.get(key, ())):
                if word not in known:
                    raise document.refuse(
                        ["alerts", "channels", name, key, index],
                        f"there is no {'zone' if key == 'zones' else 'policy'} {word!r}",
                    )
        found.append(
            Channel(
                name=name,
                type=ChannelType(channel["type"]),
                connection=channel["connection"],
                to=tuple(channel.get("to", ())),
                sender=channel.get("sender", ""),
                endpoint=channel.get("endpoint", ""),
                tag=channel.get("tag", "all"),
                severity=Severity(channel.get("severity", Severity.WARNING)),
                zones=tuple(channel.get("zones", ())),
                policies=tuple(channel.get("policies", ())),
            )
        )
    return tuple(found)
