"""Fixtures for every test. Nothing here replaces a real part: PostgreSQL, libvirt and QEMU are the real ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings
from nasbackup.catalog import Database

from tests.databases import Databases

# How long an example takes says something about the machine, which may stand still for a moment, and nothing else.
settings.register_profile(
    "patient", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def postgres_directory() -> str:
    """The socket's directory of the test stack's PostgreSQL (scripts/test starts it and exports this)."""
    uri = os.environ.get("AIRFLOW_CONN_NAS_BACKUP_CATALOG")
    assert uri, "tests that need PostgreSQL run under scripts/test"
    host = urlsplit(uri).netloc.partition("@")[2]
    return host.replace("%2F", "/")


@pytest.fixture(scope="session")
def databases(postgres_directory: str) -> Iterator[Databases]:
    databases = Databases(directory=postgres_directory)
    yield databases
    databases.drop()


@pytest.fixture
def database(databases: Databases) -> Database:
    """An empty catalog, migrated, for this test alone."""
    return databases.empty()
