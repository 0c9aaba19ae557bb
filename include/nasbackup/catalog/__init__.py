"""The catalog: which backups exist and who may change them, in a PostgreSQL database of its own.

Every function takes the cursor of a transaction that the caller opened: what belongs together is written in
one transaction, and the caller's code shows where it ends. What is only looked at needs none (``Database.reading``),
nor does what one statement writes (``Database.autocommit``).
"""

from nasbackup.catalog import backups, leases, repositories, vms
from nasbackup.catalog.database import Cursor, Database, migrate

__all__ = ["Cursor", "Database", "backups", "leases", "migrate", "repositories", "vms"]
