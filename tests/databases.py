"""Empty catalogs. One database serves a process's tests one after the other, as long as they change nothing but rows.

To make and to drop one takes PostgreSQL a third of a second of CPU, and there are hundreds of tests.
"""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import psycopg2
from nasbackup.catalog import Database, migrate
from psycopg2 import sql

# What tables and indexes hold, and how much, is no part of the schema.
_CLASS = "oid, relname, relnamespace, relowner, relkind, relpersistence, relnatts, relhastriggers, relacl, reloptions"
_OBJECTS = [  # with an oid from 16384 on they are nobody's but ours
    f"(SELECT {_CLASS} FROM pg_class WHERE oid >= 16384)",
    "(SELECT * FROM pg_attribute WHERE attrelid >= 16384)",
    "pg_attrdef",
    "(SELECT * FROM pg_constraint WHERE oid >= 16384)",
    "(SELECT * FROM pg_index WHERE indexrelid >= 16384)",
    "pg_namespace",
    "(SELECT * FROM pg_proc WHERE oid >= 16384)",
    "(SELECT * FROM pg_rewrite WHERE oid >= 16384)",
    "pg_sequence",
    "pg_trigger",
    "(SELECT * FROM pg_type WHERE oid >= 16384)",
    "pg_db_role_setting",
    "schema_migration",
]
_SCHEMA = " UNION ALL ".join(
    f"SELECT {number}, count(*), sum(hashtextextended(object::text, 0)) FROM {what} object"
    for number, what in enumerate(_OBJECTS)
)
_OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename), coalesce(last_value, start_value), last_value IS NOT NULL
FROM pg_sequences ORDER BY 1
"""


@dataclass(kw_only=True)
class Databases:
    """Those of one process, below the directory of PostgreSQL's socket."""

    directory: str
    _name: str = field(default="", init=False)
    _schema: Any = field(default=None, init=False)
    _sequences: list[tuple[str, int, bool]] = field(default_factory=list, init=False)

    def empty(self) -> Database:
        """A catalog as it is after its migrations; nobody is connected to it."""
        if self._name and not self._emptied():
            self.drop()
        if not self._name:
            self._make()
        return self._database()

    def drop(self) -> None:
        if self._name:
            self._administer(f"DROP DATABASE {self._name} WITH (FORCE)")
        self._name = ""

    def _make(self) -> None:
        self._name = f"test_{uuid.uuid4().hex}"
        self._administer(f"CREATE DATABASE {self._name} OWNER nasbackup")
        migrate(self._database())
        with closing(self._connect(self._name)) as connection, connection.cursor() as cursor:
            self._schema = _asked(cursor, _SCHEMA)
            self._sequences = _asked(cursor, _SEQUENCES)
            assert not _used(cursor), "rows that a migration makes would be missing in the next test"

    def _emptied(self) -> bool:
        """False: it is no longer the schema that was migrated."""
        with closing(self._connect(self._name)) as connection, connection.cursor() as cursor:
            while _asked(cursor, f"SELECT pg_terminate_backend(pid) {_OTHERS}"):
                time.sleep(0.001)
            try:
                if _asked(cursor, _SCHEMA) != self._schema:
                    return False
            except psycopg2.errors.UndefinedTable:  # not even the note of the migrations
                return False
            # A TRUNCATE would make new files for all tables that hang together; VACUUM leaves nothing of rows, either.
            cursor.execute("SET session_replication_role = replica")  # no foreign keys
            for table in _used(cursor):
                cursor.execute(sql.SQL("DELETE FROM {}").format(table))
                cursor.execute(sql.SQL("VACUUM {}").format(table))
            for sequence in set(self._sequences) - set(_asked(cursor, _SEQUENCES)):
                cursor.execute("SELECT setval(%s, %s, %s)", sequence)
        return True

    def _database(self) -> Database:
        host = quote(self.directory, safe="")
        return Database(parameters={"dsn": f"postgresql://nasbackup@{host}/{self._name}"})

    def _connect(self, name: str) -> Any:
        connection = psycopg2.connect(host=self.directory, user="postgres", dbname=name)
        connection.autocommit = True
        return connection

    def _administer(self, statement: str) -> None:
        with closing(self._connect("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(statement)


def _asked(cursor: Any, query: str | sql.Composable) -> list[Any]:
    cursor.execute(query)
    rows: list[Any] = cursor.fetchall()
    return rows


def _used(cursor: Any) -> list[sql.Identifier]:
    """The tables that have rows, or room that rows have left."""
    tables = _asked(
        cursor,
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND oid >= 16384 AND relname <> 'schema_migration'"
        " AND pg_relation_size(oid) > 0",
    )
    return [sql.Identifier(name) for (name,) in tables]
