"""Connections, transactions and migrations of the catalog's PostgreSQL database."""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg2
import psycopg2.extensions

from nasbackup.catalog import idle
from nasbackup.errors import CatalogAddressInvalid, CatalogConflict, CatalogOutdated, CatalogUnreachable

# Any number will do, as long as every migrating process takes the same one.
_MIGRATION_LOCK = 0x6E6173  # "nas"

# A connection is kept for a while: a server that lost its power says nothing, and must not be waited for.
_DEFAULTS = {
    "connect_timeout": 10,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "application_name": "nasbackup",
}

PlainCursor = psycopg2.extensions.cursor
"""A tuple per row: for very many of them."""


class Cursor(PlainCursor):
    """A dictionary per row. (That of psycopg2.extras is made by a call in Python for each column.)"""

    def fetchone(self) -> dict[str, Any] | None:  # type: ignore[override]
        return next(iter(self._named(super().fetchmany(1))), None)

    def fetchall(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self._named(super().fetchall())

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        while rows := self._named(super().fetchmany(self.itersize)):  # of a cursor on the server: so many at a time
            yield from rows

    def _named(self, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        names = [column.name for column in self.description or ()]
        return [dict(zip(names, row, strict=True)) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Database:
    """How to reach the catalog: keywords of ``psycopg2.connect`` (kept out of every repr, they may hold a password)."""

    parameters: Mapping[str, Any] = field(repr=False)

    def transaction(self) -> AbstractContextManager[Cursor]:
        """One transaction on a connection of its own: committed when the block ends well, else rolled back.

        Raises CatalogUnreachable when PostgreSQL does not answer.
        """
        return self._connected(autocommit=False)

    def autocommit(self) -> AbstractContextManager[Cursor]:
        """One statement that changes something: it is a transaction of its own, and is committed when it ends.

        BEGIN and COMMIT would be two round trips more. Raises CatalogUnreachable.
        """
        return self._connected(autocommit=True)

    def reading(self) -> AbstractContextManager[Cursor]:
        """For looking only: every statement stands alone, and sees what was committed when it began.

        So it does in a transaction, too (PostgreSQL's READ COMMITTED), which costs two round trips more. Raises
        CatalogUnreachable.
        """
        return self._connected(autocommit=True)

    def now(self) -> datetime:
        """By the server's clock: one for all, whichever worker asks. Raises CatalogUnreachable."""
        with self.reading() as cursor:
            cursor.execute("SELECT clock_timestamp() AS now")
            (row,) = cursor.fetchall()
        found: datetime = row["now"]
        return found.astimezone(UTC)

    @contextlib.contextmanager
    def _connected(self, *, autocommit: bool) -> Iterator[Cursor]:
        parameters = {**_DEFAULTS, **self.parameters}
        try:
            connection = idle.take(parameters)
        except psycopg2.OperationalError as error:
            raise CatalogUnreachable(reason=_one_line(error)) from error
        except (psycopg2.ProgrammingError, TypeError):
            # libpq quotes the whole address in its message, the password with it: nothing of it is passed on.
            raise CatalogAddressInvalid(problem="libpq does not understand it") from None
        try:
            connection.autocommit = autocommit  # the client's own affair: nothing is sent
            # A connection that is entered begins a transaction, whatever its autocommit says.
            block = contextlib.nullcontext() if autocommit else connection
            with block, connection.cursor(cursor_factory=Cursor) as cursor:
                yield cursor
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            raise CatalogUnreachable(reason=_one_line(error)) from error
        except psycopg2.errors.UniqueViolation as error:
            raise CatalogConflict(reason=_one_line(error)) from error
        except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn) as error:
            raise CatalogOutdated(reason=_one_line(error)) from error
        finally:
            idle.give_back(parameters, connection)


def migrate(database: Database) -> list[str]:
    """Bring the schema up to date; returns the names of the migrations that were applied, in order.

    Safe to call from many processes at once, and again: each migration runs once, in one transaction with
    the note that it ran.
    """
    with database.transaction() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        cursor.execute("SELECT name FROM schema_migration")
        done = {row["name"] for row in cursor.fetchall()}
        pending = [(name, sql) for name, sql in _migrations() if name not in done]
        for name, sql in pending:
            cursor.execute(sql)
            cursor.execute("INSERT INTO schema_migration (name) VALUES (%s)", (name,))
    return [name for name, _ in pending]


def _migrations() -> list[tuple[str, str]]:
    folder = importlib.resources.files("nasbackup.catalog") / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(file.name.removesuffix(".sql"), file.read_text()) for file in files]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
