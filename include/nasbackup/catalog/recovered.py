"""Backups whose rows were lost, written anew from what the NAS says of them."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal, localcontext

from nasbackup.catalog.database import Cursor
from nasbackup.model import Backup


def insert_recorded(cursor: Cursor, *, backup: Backup, parent_id: int | None) -> int:
    """A row of a whole backup, BackedUp; returns its number. Its VM and its repository have to be known."""
    cursor.execute(
        """
        INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, consistency,
                            chain_id, chain_position, parent_id, checkpoint, host, vm_state, request, run_id,
                            lease_token, created_at, recorded_at, size, begun)
        VALUES ((SELECT vm_id FROM vm WHERE uuid = %(vm_uuid)s),
                (SELECT repository_id FROM repository WHERE name = %(repository)s),
                %(external_id)s, %(type)s, 'BackedUp', %(reason)s, %(explanation)s, %(consistency)s,
                %(chain_id)s, %(chain_position)s, %(number_of_parent)s, %(checkpoint)s, %(host)s, %(vm_state)s, '{}',
                'rebuild-catalog', 0, %(created_at)s, %(recorded_at)s, %(size)s, %(begun)s)
        RETURNING backup_id
        """,
        {
            **{name: getattr(backup, name) for name in _COLUMNS},
            "number_of_parent": parent_id,
            "begun": _place(cursor, backup=backup, parent_id=parent_id),
        },
    )
    row = cursor.fetchone()
    assert row is not None, "RETURNING gives a row"
    for ordinal, volume in enumerate(backup.volumes):
        cursor.execute(
            """
            INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,
                                       reason, backing, bytes_read, bytes_written, digest, verified_at,
                                       checked_at, compression)
            VALUES (%(backup_id)s, %(ordinal)s, %(name)s, %(source)s, %(target)s, %(format)s, %(file)s,
                    %(virtual_size)s, %(type)s, %(reason)s, %(backing)s, %(bytes_read)s, %(bytes_written)s, %(digest)s,
                    %(verified_at)s, %(checked_at)s, %(compression)s)
            """,
            {**asdict(volume), "backup_id": row["backup_id"], "ordinal": ordinal},
        )
    return int(row["backup_id"])


def forget_unfinished(cursor: Cursor, *, backup_id: int) -> None:
    """The row of one that is on its way, or failed: for the caller, who holds the VM's lease, to write it anew."""
    cursor.execute("DELETE FROM backup WHERE backup_id = %s AND status IN ('BackingUp', 'Failed')", (backup_id,))


def _place(cursor: Cursor, *, backup: Backup, parent_id: int | None) -> Decimal:
    """Where it belongs in the order of begin: after its parent, and after what was begun before it by the clock."""
    cursor.execute(
        """
        WITH others AS (
            SELECT backup_id, created_at, begun FROM backup
             WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %(vm_uuid)s)
               AND repository_id = (SELECT repository_id FROM repository WHERE name = %(repository)s)
        ), before AS (
            SELECT max(begun) AS begun FROM others WHERE created_at <= %(created_at)s OR backup_id = %(parent_id)s
        )
        SELECT before.begun AS low, nextval('backup_begun') AS latest,
               (SELECT min(begun) FROM others WHERE before.begun IS NULL OR others.begun > before.begun) AS high
          FROM before
        """,
        {
            "vm_uuid": backup.vm_uuid,
            "repository": backup.repository,
            "created_at": backup.created_at,
            "parent_id": parent_id,
        },
    )
    row = cursor.fetchone()
    assert row is not None, "an aggregate gives a row"
    if row["high"] is None:
        return Decimal(row["latest"])
    with localcontext(prec=1000):  # exact, however often a gap is halved
        high = Decimal(row["high"])
        return (Decimal(row["low"]) + high) * Decimal("0.5") if row["low"] is not None else high - 1


_COLUMNS = (
    *("vm_uuid", "repository", "external_id", "type", "reason", "explanation", "consistency", "chain_id"),
    *("chain_position", "checkpoint", "host", "vm_state", "created_at", "recorded_at", "size"),
)
