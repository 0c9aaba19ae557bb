"""``fleet.yaml``: zones, their hosts and repositories (ids of Airflow Connections), and policies.

::

    zones:
      default:
        hosts: [kvm_one, kvm_two]         # Connections of type libvirt
        repositories: [nas_main]          # Connections of type nas; the first is the zone's default
    policies:                             # the first that matches a VM is the VM's
      standard:
        vms: ["*"]                        # globs of instance names
        timezone: Europe/Berlin
        retention: {keep_daily: 7, keep_weekly: 4, recovery_window: 14 days}
    retention:
      keep_orphaned: 90 days              # backups of VMs without a policy, or that are not defined any more
      at_most: {backups: 200, percent: 20}   # more in one run is asked about first
    capacity: {warn_percent: 85, warn_days: 30}

Read while Airflow parses DAG files, so this module stays light.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from nasbackup.errors import FleetInvalid, ParamInvalid, UnknownHost, UnknownPolicy
from nasbackup.retention.capacity import Thresholds
from nasbackup.retention.rules import Guard, Policy, RetentionRules, Span, Unprotected

ENVIRONMENT = "NASBACKUP_FLEET"
DEFAULT_PATH = "/etc/nasbackup/fleet.yaml"


@dataclass(frozen=True, kw_only=True)
class Zone:
    name: str
    hosts: tuple[str, ...]
    repositories: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    zones: tuple[Zone, ...]
    policies: tuple[Policy, ...] = ()
    unprotected: Unprotected = field(default_factory=Unprotected)
    guard: Guard = field(default_factory=Guard)
    capacity: Thresholds = field(default_factory=Thresholds)

    @property
    def hosts(self) -> list[str]:
        return [host for zone in self.zones for host in zone.hosts]

    @property
    def repositories(self) -> list[str]:
        return list(dict.fromkeys(name for zone in self.zones for name in zone.repositories))

    def zone_of(self, host: str) -> Zone:
        """The zone that the host belongs to. Raises UnknownHost."""
        for zone in self.zones:
            if host in zone.hosts:
                return zone
        raise UnknownHost(host=host, known=", ".join(self.hosts) or "none", file=path())

    def policy_of(self, *, vm: str, host: str) -> Policy | None:
        """The first policy that matches the VM; None: it is unprotected."""
        zone = next((zone.name for zone in self.zones if host in zone.hosts), None)
        for policy in self.policies:
            if policy.zones and zone not in policy.zones:
                continue
            if any(fnmatchcase(vm, glob) for glob in policy.vms):
                return policy
        return None

    def policy(self, name: str) -> Policy:
        """The policy of this name. Raises UnknownPolicy."""
        for policy in self.policies:
            if policy.name == name:
                return policy
        raise UnknownPolicy(policy=name, known=", ".join(policy.name for policy in self.policies) or "none")


def path() -> Path:
    return Path(os.environ.get(ENVIRONMENT, DEFAULT_PATH))


def load(file: Path | None = None) -> Fleet:
    """The fleet. Raises FleetInvalid, which names file, field (or line) and problem."""
    file = file or path()
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FleetInvalid(file=file, field="file", problem=f"it is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise FleetInvalid(
            file=file, field="file", problem=f"{error.strerror} (its place is set by ${ENVIRONMENT})"
        ) from error
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 (it is a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "file"
        problem = getattr(error, "problem", None) or f"not YAML: {' '.join(str(error).split())}"
        raise FleetInvalid(file=file, field=where, problem=problem) from error
    return _parse(document, file=file)


class _Loader(yaml.SafeLoader):
    """Keys are the words that were written, each once: plain YAML takes ``on`` for true and the last twin for both."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def retention_rules(document: Any, *, named: str) -> RetentionRules:
    """Rules that come from elsewhere than fleet.yaml, checked the same way. Raises ParamInvalid."""
    problem = _problem(document, schema={**_schema()["$defs"]["retention"], "$defs": _schema()["$defs"]})
    if problem is not None:
        raise ParamInvalid(name=named, value=document, problem=": ".join(filter(None, problem)))
    return RetentionRules.from_document(document)


def require_timezone(name: str, *, named: str) -> None:
    """Raises ParamInvalid."""
    try:
        if name in ("localtime", "posixrules"):
            raise ValueError("not the same on every machine")
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ParamInvalid(name=named, value=name, problem=f"there is no time zone {name!r}") from error


def _problem(document: Any, *, schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """(field, what is wrong with it) of the first problem."""
    import jsonschema  # costs 60 ms, and only a document that was read needs it

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    return None if error is None else (error.json_path.removeprefix("$").removeprefix("."), error.message)


def _parse(document: Any, *, file: Path) -> Fleet:
    problem = _problem(document, schema=_schema())
    if problem is not None:
        raise FleetInvalid(file=file, field=problem[0] or "file", problem=problem[1])
    zones = tuple(
        Zone(name=name, hosts=tuple(zone["hosts"]), repositories=tuple(zone["repositories"]))
        for name, zone in document["zones"].items()
    )
    hosts = [host for zone in zones for host in zone.hosts]
    for host in hosts:
        if hosts.count(host) > 1:
            raise FleetInvalid(file=file, field="zones", problem=f"host {host} is in more than one zone")
    known_zones = {zone.name for zone in zones}
    policies = tuple(
        _policy(name, policy, file=file, zones=known_zones) for name, policy in document.get("policies", {}).items()
    )
    retention = document.get("retention", {})
    keep_orphaned = retention.get("keep_orphaned")
    return Fleet(
        zones=zones,
        policies=policies,
        unprotected=Unprotected(keep_orphaned=Span.parse(keep_orphaned) if keep_orphaned else None),
        guard=Guard(**_whole(retention.get("at_most", {}))),
        capacity=Thresholds(**_whole(document.get("capacity", {}))),
    )


def _whole(document: Mapping[str, Any]) -> dict[str, int]:
    """To JSON Schema 7.0 is an integer as well."""
    return {name: int(value) for name, value in document.items()}


def _policy(name: str, document: Mapping[str, Any], *, file: Path, zones: Collection[str]) -> Policy:
    timezone = document.get("timezone", "UTC")
    try:
        require_timezone(timezone, named="timezone")
    except ParamInvalid as error:
        raise FleetInvalid(file=file, field=f"policies.{name}.timezone", problem=error.problem) from error
    for zone in document.get("zones", ()):
        if zone not in zones:
            raise FleetInvalid(file=file, field=f"policies.{name}.zones", problem=f"there is no zone {zone!r}")
    return Policy(
        name=name,
        vms=tuple(document["vms"]),
        zones=tuple(document.get("zones", ())),
        timezone=timezone,
        retention=RetentionRules.from_document(document.get("retention", {})),
    )


@functools.cache
def _schema() -> dict[str, Any]:
    schema = importlib.resources.files("nasbackup") / "schemas" / "fleet.schema.json"
    return dict(json.loads(schema.read_text()))
