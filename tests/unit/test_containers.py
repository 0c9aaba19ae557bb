"""docker-compose.yaml, which no test brings up: each service has what its code needs, and the documentation says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
FLEET = "/etc/nasbackup/fleet.yaml"
CATALOG = "nasbackup_db_password"
WORDS = {
    "both database passwords": {"airflow_db_password", CATALOG},
    "airflow's database password": {"airflow_db_password"},
    "fernet key": {"fernet_key"},
    "API and JWT secrets": {"api_secret_key", "jwt_secret"},
    "JWT secret": {"jwt_secret"},
    "logins": {"passwords.json"},
}


def mounts(service: str) -> dict[str, Any]:
    """Target -> how it is mounted."""
    found = {}
    for volume in SERVICES[service].get("volumes", ()):
        if isinstance(volume, str):
            _, target, *mode = volume.split(":")
            volume = {"target": target, "read_only": "ro" in mode}
        found[volume["target"]] = volume
    return found


def reaches_the_world(service: str) -> bool:
    networks = COMPOSE["networks"]
    return any(not (networks[name] or {}).get("internal") for name in SERVICES[service]["networks"])


def test_who_tells_people_of_alerts_reaches_them() -> None:
    """``deliver`` is a task, which the scheduler's container runs."""
    assert reaches_the_world("scheduler")


@pytest.mark.parametrize("service", ["scheduler", "triggerer"])
def test_who_finds_something_to_tell_knows_whom_and_can_note_it(service: str) -> None:
    """A deadline that passes is the triggerer's."""
    assert mounts(service)[FLEET]["read_only"]
    assert CATALOG in SERVICES[service]["secrets"]
    assert "ports" not in SERVICES[service]


def test_what_has_no_business_outside_reaches_nothing() -> None:
    outside = {name for name in SERVICES if reaches_the_world(name)}
    assert outside == {"api-server", "scheduler"}
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"api-server"}


def test_whoever_parses_dags_or_draws_the_page_has_the_fleet() -> None:
    assert {name for name in SERVICES if FLEET in mounts(name)} == {
        *("api-server", "dag-processor"),
        *("scheduler", "triggerer"),
    }


def test_the_documentation_lists_what_each_service_sees() -> None:
    text = (ROOT / "docs" / "containers.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+)[^|]*\| ([^|]*)\| ([^|]*)\| [^|]+\|$", text, flags=re.M)
    documented = {name: (volumes, secrets.strip().split(", ")) for name, volumes, secrets in rows if name in SERVICES}
    assert set(documented) == set(SERVICES)
    for name, (volumes, secrets) in documented.items():
        said = {secret for words in secrets for secret in WORDS[words]}
        assert said == set(SERVICES[name].get("secrets", ())), name
        assert ("fleet.yaml" in volumes) == (FLEET in mounts(name)), name
        assert ("`logs`" in volumes) == ("/opt/airflow/logs" in mounts(name)), name
