"""Fixtures for every test. Nothing here replaces a real part: PostgreSQL, libvirt and QEMU are the real ones."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import psycopg2
import pytest
from nasbackup.catalog import Database, migrate


@pytest.fixture(scope="session")
def postgres_directory() -> str:
    """The socket's directory of the test stack's PostgreSQL (scripts/test starts it and exports this)."""
    uri = os.environ.get("AIRFLOW_CONN_NAS_BACKUP_CATALOG")
    assert uri, "tests that need PostgreSQL run under scripts/test"
    host = urlsplit(uri).netloc.partition("@")[2]
    return host.replace("%2F", "/")


@pytest.fixture
def database(postgres_directory: str) -> Iterator[Database]:
    """An empty catalog of this test's own, migrated, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    admin = psycopg2.connect(host=postgres_directory, user="postgres", dbname="postgres")
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} OWNER nasbackup")
    try:
        database = Database(parameters={"dsn": f"postgresql://nasbackup@{quote(postgres_directory, safe='')}/{name}"})
        migrate(database)
        yield database
    finally:
        with admin.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
        admin.close()
