"""Backups whose rows were lost, written anew from what the NAS says of them."""

from __future__ import annotations

from dataclasses import asdict

from nasbackup.catalog.database import Cursor
from nasbackup.model import Backup


def insert_recorded(cursor: Cursor, *, backup: Backup, parent_id: int | None) -> int:
    """A row of a whole backup, BackedUp; returns its number. Its VM and its repository have to be known."""
    cursor.execute(
        """
        INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, consistency,
                            chain_id, chain_position, parent_id, checkpoint, host, vm_state, request, run_id,
                            lease_token, created_at, recorded_at, size)
        VALUES ((SELECT vm_id FROM vm WHERE uuid = %(vm_uuid)s),
                (SELECT repository_id FROM repository WHERE name = %(repository)s),
                %(external_id)s, %(type)s, 'BackedUp', %(reason)s, %(explanation)s, %(consistency)s,
                %(chain_id)s, %(chain_position)s, %(number_of_parent)s, %(checkpoint)s, %(host)s, %(vm_state)s, '{}',
                'rebuild-catalog', 0, %(created_at)s, %(recorded_at)s, %(size)s)
        RETURNING backup_id
        """,
        {**{name: getattr(backup, name) for name in _COLUMNS}, "number_of_parent": parent_id},
    )
    row = cursor.fetchone()
    assert row is not None, "RETURNING gives a row"
    for ordinal, volume in enumerate(backup.volumes):
        cursor.execute(
            """
            INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,
                                       reason, backing, bytes_read, bytes_written, digest, verified_at)
            VALUES (%(backup_id)s, %(ordinal)s, %(name)s, %(source)s, %(target)s, %(format)s, %(file)s,
                    %(virtual_size)s, %(type)s, %(reason)s, %(backing)s, %(bytes_read)s, %(bytes_written)s, %(digest)s,
                    %(verified_at)s)
            """,
            {**asdict(volume), "backup_id": row["backup_id"], "ordinal": ordinal},
        )
    return int(row["backup_id"])


_COLUMNS = (
    *("vm_uuid", "repository", "external_id", "type", "reason", "explanation", "consistency", "chain_id"),
    *("chain_position", "checkpoint", "host", "vm_state", "created_at", "recorded_at", "size"),
)
