"""What tests share is as good as new."""

from __future__ import annotations

from uuid import uuid4

import psycopg2
import pytest
from nasbackup.catalog import Database, leases, repositories, vms
from nasbackup.errors import CatalogUnreachable
from nasbackup.model import Repository, RepositoryType

from tests.databases import Databases

CHANGES = [
    "ALTER TABLE vm ADD COLUMN more int",
    "ALTER TABLE vm ALTER COLUMN name DROP NOT NULL",
    "ALTER TABLE repository ALTER COLUMN path SET DEFAULT 'x'",
    "ALTER TABLE backup RENAME TO other",
    "DROP TABLE schema_migration",
    "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    "CREATE INDEX more ON vm (host)",
    "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE VIEW more AS SELECT 1",
    "CREATE OR REPLACE VIEW live_child AS SELECT parent_id, backup_id, external_id, begun FROM backup",
    "INSERT INTO schema_migration (name) VALUES ('more')",
    "DELETE FROM schema_migration WHERE name = (SELECT max(name) FROM schema_migration)",
]


def fill(database: Database) -> str:
    """Returns the name that PostgreSQL knows it by."""
    uuid = str(uuid4())
    repository = Repository(name="nas", type=RepositoryType.LOCAL, path="/nas")
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=str(uuid4()))
        vms.register(cursor, uuid=uuid, name="vm", host="kvm")
        leases.acquire(cursor, vm_uuid=uuid, vm="vm", holder="test")
        cursor.execute("SELECT current_database()")
        row = cursor.fetchone()
        assert row
        return str(row["current_database"])


def everything(database: Database) -> dict[str, object]:
    """Rows of each table, how long it is, and where each sequence stands."""
    with database.transaction() as cursor:
        cursor.execute("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
        names = [row["name"] for row in cursor.fetchall() if row["name"] != "schema_migration"]
        found: dict[str, object] = {}
        for name in names:
            cursor.execute(f"SELECT * FROM {name}")
            rows = cursor.fetchall()
            cursor.execute("SELECT pg_relation_size(%s::regclass) AS size", (name,))
            found[name] = (rows, cursor.fetchall())
        cursor.execute("SELECT sequencename, last_value FROM pg_sequences")
        assert len(names) > 10
        return {**found, **{row["sequencename"]: row["last_value"] for row in cursor.fetchall()}}


def test_rows_and_numbers_of_the_test_before_are_gone(databases: Databases) -> None:
    new = everything(databases.empty())
    name = fill(databases.empty())
    assert everything(databases.empty()) == new
    database = databases.empty()
    fill(database)
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM lease")  # by the test itself: where its rows were is empty, and not gone
    assert everything(databases.empty()) == new
    assert fill(databases.empty()) == name, "it is the same database"


def test_an_open_transaction_of_the_test_before_is_ended(databases: Databases) -> None:
    database = databases.empty()
    fill(database)

    def too_long() -> None:
        with database.transaction() as cursor:
            cursor.execute("SELECT * FROM vm FOR UPDATE")
            databases.empty()
            cursor.execute("SELECT 1")

    with pytest.raises(CatalogUnreachable):
        too_long()


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_of_the_schema_it_is_another_one(databases: Databases, change: str) -> None:
    database = databases.empty()
    before, name = everything(database), fill(database)
    connection = psycopg2.connect(**database.parameters)
    with connection, connection.cursor() as cursor:
        cursor.execute(change)
    connection.close()
    database = databases.empty()
    assert everything(database) == before
    assert fill(database) != name
