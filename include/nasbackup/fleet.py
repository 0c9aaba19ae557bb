"""``fleet.yaml``: zones, their hosts and repositories. Names are ids of Airflow Connections.

::

    zones:
      default:
        hosts: [kvm_one, kvm_two]         # Connections of type libvirt
        repositories: [nas_main]          # Connections of type nas; the first is the zone's default

Read while Airflow parses DAG files, so this module stays light.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nasbackup.errors import FleetInvalid, UnknownHost

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
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "file"
        raise FleetInvalid(file=file, field=where, problem=getattr(error, "problem", None) or "not YAML") from error
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


def _parse(document: Any, *, file: Path) -> Fleet:
    import jsonschema  # costs 60 ms, and only a fleet.yaml that was read needs it

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(_schema()).iter_errors(document))
    if error is not None:
        raise FleetInvalid(
            file=file, field=error.json_path.removeprefix("$").removeprefix(".") or "file", problem=error.message
        )
    zones = tuple(
        Zone(name=name, hosts=tuple(zone["hosts"]), repositories=tuple(zone["repositories"]))
        for name, zone in document["zones"].items()
    )
    hosts = [host for zone in zones for host in zone.hosts]
    for host in hosts:
        if hosts.count(host) > 1:
            raise FleetInvalid(file=file, field="zones", problem=f"host {host} is in more than one zone")
    return Fleet(zones=zones)


@functools.cache
def _schema() -> dict[str, Any]:
    schema = importlib.resources.files("nasbackup") / "schemas" / "fleet.schema.json"
    return dict(json.loads(schema.read_text()))
