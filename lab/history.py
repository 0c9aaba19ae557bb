"""A past for the demo's VMs: backups, looks and drills of the last month that never were.

Every generated backup has the ``run_id`` "generated" and nothing of it is on the NAS; the page says so.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from nasbackup.catalog import Cursor, Database, vms

DAYS = 30
CHAIN = 10
GENERATED = "generated"
MIB = 1 << 20


def generate(
    database: Database,
    *,
    vm: str,
    vm_uuid: str,
    host: str,
    repository: str,
    policy: str,
    volumes: Mapping[str, tuple[Path, int]],
    newest: timedelta,
    now: datetime,
) -> None:
    """One backup a day until ``newest`` before ``now``, in chains; a VM that has backups already is left alone.

    ``volumes``: target -> image and its virtual size, as the VM has them, so that its next backup is of the same ones.
    """
    numbers = random.Random(vm)  # noqa: S311 (the same past each time)
    last = (now - newest).replace(microsecond=0)
    with database.transaction() as cursor:
        vms.register(cursor, uuid=vm_uuid, name=vm, host=host)
        cursor.execute("SELECT 1 FROM backup JOIN vm USING (vm_id) WHERE uuid = %s LIMIT 1", (vm_uuid,))
        if cursor.fetchone() is not None:
            return
        cursor.execute("UPDATE vm SET first_seen_at = %s WHERE uuid = %s", (last - timedelta(days=DAYS), vm_uuid))
        parent, chain = None, str(uuid.uuid4())
        for number in range(DAYS):
            at = last - timedelta(days=DAYS - 1 - number)
            if number % CHAIN == 0:
                parent, chain = None, str(uuid.uuid4())
            size = (160 if parent is None else numbers.randrange(4, 40)) * MIB
            parent = _backup(
                cursor,
                vm=vm,
                vm_uuid=vm_uuid,
                host=host,
                repository=repository,
                at=at,
                parent=parent,
                chain=chain,
                position=number % CHAIN,
                size=size,
                volumes=volumes,
            )
        _looks(cursor, vm_uuid=vm_uuid, policy=policy, newest=last, now=now)
        if newest < timedelta(days=1):
            cursor.execute(
                """
                INSERT INTO drill (vm_id, backup_id, external_id, started_at, finished_at, result, rto_seconds, how)
                SELECT vm_id, backup_id, external_id, created_at + interval '1 hour',
                       created_at + interval '61 minutes', 'ok', 41, 'generated' FROM backup WHERE backup_id = %s
                """,
                (parent,),
            )


def _backup(
    cursor: Cursor,
    *,
    vm: str,
    vm_uuid: str,
    host: str,
    repository: str,
    at: datetime,
    parent: int | None,
    chain: str,
    position: int,
    size: int,
    volumes: Mapping[str, tuple[Path, int]],
) -> int:
    cursor.execute(
        """
        INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, consistency, chain_id,
                            chain_position, parent_id, host, vm_state, request, run_id, lease_token, created_at,
                            recorded_at, size)
        SELECT vm_id, repository_id, %(id)s, %(type)s, 'BackedUp', %(reason)s, 'generated for the demo', 'crash',
               %(chain)s, %(position)s, %(parent)s, %(host)s, 'running', '{}', %(run)s, 1, %(at)s,
               %(at)s + interval '90 seconds', %(size)s
          FROM vm, repository r WHERE vm.uuid = %(uuid)s AND r.name = %(repository)s RETURNING backup_id
        """,
        {
            "id": f"{vm}/{at:%Y.%m.%d.%H.%M.%S}",
            "type": "FULL" if parent is None else "INCREMENTAL",
            "reason": "chain_complete" if parent is None else "incremental",
            "chain": chain,
            "position": position,
            "parent": parent,
            "host": host,
            "run": GENERATED,
            "at": at,
            "size": size,
            "uuid": vm_uuid,
            "repository": repository,
        },
    )
    row = cursor.fetchone()
    assert row is not None
    number = int(row["backup_id"])
    for ordinal, (target, (image, virtual_size)) in enumerate(volumes.items()):
        cursor.execute(
            """
            INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,
                                       reason, backing, bytes_read, bytes_written, digest, copy_seconds, verified_at)
            VALUES (%(backup)s, %(ordinal)s, %(target)s, %(source)s, %(target)s, 'qcow2', %(file)s, %(virtual)s,
                    %(type)s, %(reason)s, %(backing)s, %(size)s, %(size)s, 'generated', %(seconds)s, %(at)s)
            """,
            {
                "backup": number,
                "ordinal": ordinal,
                "target": target,
                "source": str(image),
                "file": f"generated.{target}.qcow2",
                "virtual": virtual_size,
                "type": "FULL" if parent is None else "INCREMENTAL",
                "reason": "full_backup" if parent is None else "incremental",
                "backing": None if parent is None else f"../generated/generated.{target}.qcow2",
                "size": size // len(volumes),
                "seconds": size / len(volumes) / (80 * MIB),
                "at": at + timedelta(seconds=80),
            },
        )
    return number


def _looks(cursor: Cursor, *, vm_uuid: str, policy: str, newest: datetime, now: datetime) -> None:
    """288 a day; from 26 hours after its newest backup on the VM was out of its promise."""
    broken = newest + timedelta(hours=26)
    for back in range(1, DAYS):
        day: date = (now - timedelta(days=back)).date()
        end = datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)
        late = min(max((end - broken).total_seconds() / 300, 0), 288)
        values = (day, policy, 288, 288 - int(late))
        cursor.execute(
            "INSERT INTO sla_day (day, vm_id, policy, looks, compliant)"
            " SELECT %s, vm_id, %s, %s, %s FROM vm WHERE uuid = %s",
            (*values, vm_uuid),
        )
        cursor.execute(
            """
            INSERT INTO sla_policy_day (day, policy, looks, compliant) VALUES (%s, %s, %s, %s)
            ON CONFLICT (day, policy) DO UPDATE SET looks = sla_policy_day.looks + EXCLUDED.looks,
                                                    compliant = sla_policy_day.compliant + EXCLUDED.compliant
            """,
            values,
        )
