"""What several commands have in common."""

from __future__ import annotations

import functools
import getpass
import os
import platform
from collections.abc import Callable
from typing import Any

import click

from nasbackup.catalog import Database

CATALOG_VARIABLES = ("NASBACKUP_CATALOG", "AIRFLOW_CONN_NAS_BACKUP_CATALOG")


def with_database(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        return command(*args, database=database_or_refuse(), **kwargs)

    return wrapper


def database_or_refuse() -> Database:
    """The catalog that the environment names."""
    for variable in CATALOG_VARIABLES:
        if os.environ.get(variable):
            return Database(parameters={"dsn": os.environ[variable]})
    raise click.ClickException(
        f"The catalog is not named: set {CATALOG_VARIABLES[0]} to its libpq URI, or use scripts/nasbackup."
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def holder(what: str) -> str:
    """Whose lease it is, for the person who has to wait for it."""
    return f"nasbackup {what} by {getpass.getuser()} on {platform.node()} (process {os.getpid()})"
