"""A fleet as it is after months, generated: for benchmarks, tests and the demo's history.

Always the same for the same arguments. Every backup has the ``run_id`` "generated", and nothing of it is on any NAS:
the page says so wherever one of them shows. All rows are made by PostgreSQL itself, a million backups in a minute.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from nasbackup.catalog import Database

CHAIN = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``each``: backups of every VM, one a day. Names are ``<prefix><number>-VM``; the repository is there already."""

    vms: int
    each: int
    now: datetime
    prefix: str = "i-2-"
    host: str = "kvm_one"
    repository: str
    chain: int = CHAIN


# The newest backup of most VMs is fresh; one VM in 17 is late, one in 41 very late.
BACKUPS = """
INSERT INTO vm (uuid, name, host, title, state, first_seen_at, seen_at)
SELECT md5(%(prefix)s || n)::uuid, %(prefix)s || n || '-VM', %(host)s,
       (ARRAY['ERP database', 'Mail relay', 'Web shop', 'Build server', 'Wiki', 'File server', 'Directory', 'Metrics']
       )[1 + n %% 8], CASE WHEN n %% 11 = 0 THEN 'stopped' ELSE 'running' END,
       %(now)s::timestamptz - make_interval(days => %(each)s), %(now)s
  FROM generate_series(1, %(vms)s) n;
CREATE TEMPORARY TABLE generated ON COMMIT DROP AS
SELECT base + number * %(vms)s + n AS id, vm.vm_id, vm.name, n, number, number %% %(chain)s AS position, at,
       CASE WHEN number %% %(chain)s = 0 THEN (12 + n * 13 %% 29) * 1073741824::bigint
            ELSE (150 + (n * 31 + number * 57) %% 900 * (1 + (number %% 7) / 3)) * 1048576::bigint END AS size,
       (90 + (n * 7 + number * 11) %% 110) * 1048576.0 AS speed
  FROM (SELECT coalesce(max(backup_id), 0) AS base FROM backup) last, generate_series(0, %(each)s - 1) number,
       generate_series(1, %(vms)s) n
  JOIN vm ON vm.uuid = md5(%(prefix)s || n)::uuid
 CROSS JOIN LATERAL (SELECT %(now)s::timestamptz - make_interval(
       days => %(each)s - 1 - number,
       hours => CASE WHEN n %% 41 = 0 THEN 76 WHEN n %% 17 = 0 THEN 31 ELSE 1 + n * 7 %% 12 END,
       secs => n %% 3000) AS at) t;
ANALYZE generated;
INSERT INTO backup (backup_id, vm_id, repository_id, external_id, type, status, reason, explanation, consistency,
                    chain_id, chain_position, parent_id, checkpoint, host, vm_state, request, run_id, lease_token,
                    created_at, recorded_at, size)
OVERRIDING SYSTEM VALUE
SELECT id, vm_id, (SELECT repository_id FROM repository WHERE name = %(repository)s),
       name || '/' || to_char(at AT TIME ZONE 'UTC', 'YYYY.MM.DD.HH24.MI.SS'),
       CASE WHEN position = 0 THEN 'FULL' ELSE 'INCREMENTAL' END,
       CASE WHEN %(pending)s AND number < %(chain)s / 2 AND %(each)s > %(chain)s THEN 'DeletePending'
            ELSE 'BackedUp' END,
       CASE WHEN position = 0 THEN 'chain_complete' ELSE 'incremental' END,
       CASE WHEN position = 0 THEN 'full: the chain is complete' ELSE 'incremental: the changed blocks' END, 'crash',
       md5('chain' || name || '-' || number / %(chain)s)::uuid, position,
       CASE WHEN position > 0 THEN id - %(vms)s END, 'backup-' || extract(epoch FROM at)::bigint, %(host)s, 'running',
       '{}', 'generated', 1, at, at + make_interval(secs => 25 + size / speed), size
  FROM generated ORDER BY id;
SELECT setval(pg_get_serial_sequence('backup', 'backup_id'), (SELECT max(backup_id) FROM backup));
INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type, reason, backing,
                           bytes_read, bytes_written, digest, copy_seconds, verified_at)
SELECT id, 0, 'ROOT', '/images/ROOT.qcow2', 'vda', 'qcow2', 'root.ROOT.qcow2', 100 * 1073741824::bigint,
       CASE WHEN position = 0 THEN 'FULL' ELSE 'INCREMENTAL' END,
       CASE WHEN position = 0 THEN 'full_backup' ELSE 'incremental' END,
       CASE WHEN position > 0 THEN '../parent/root.ROOT.qcow2' END, size, size, 'generated', size / speed,
       CASE WHEN number < %(each)s - 1 OR n %% 19 > 0 THEN at + make_interval(secs => 40 + size / speed) END
  FROM generated;
INSERT INTO active_checkpoint (vm_id, repository_id, checkpoint, backup_id)
SELECT b.vm_id, repository_id, checkpoint, backup_id FROM backup b JOIN generated ON id = backup_id
 WHERE number = %(each)s - 1;
"""

# What nas_sla_watch, nas_restore_drill and nas_retention would have found. Gold is promised more than standard.
STATUSES = """
INSERT INTO drill (vm_id, backup_id, external_id, started_at, finished_at, result, rto_seconds, how, detail)
SELECT b.vm_id, backup_id, external_id, recorded_at + interval '20 minutes', recorded_at + interval '24 minutes',
       CASE WHEN n %% 35 = 0 THEN 'failed' ELSE 'ok' END, CASE WHEN n %% 35 > 0 THEN 41 + n %% 60 END, 'login prompt',
       CASE WHEN n %% 35 = 0 THEN 'no answer on the console within 10 minutes' ELSE '' END
  FROM backup b JOIN generated ON id = backup_id WHERE n %% 5 = 0 AND number = %(each)s - 2;
INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_id, chain_position,
                    parent_id, checkpoint, host, vm_state, request, run_id, lease_token, created_at, error, cleaned_at)
SELECT b.vm_id, repository_id, name || '/' || to_char((at + interval '1 hour') AT TIME ZONE 'UTC',
       'YYYY.MM.DD.HH24.MI.SS'), 'INCREMENTAL', 'Failed', 'incremental', 'incremental: the changed blocks', chain_id,
       chain_position + 1, backup_id, NULL, b.host, 'running', '{}', 'generated', 1, at + interval '1 hour',
       'Repository ' || %(repository)s || ' did not answer within 30 s.', at + interval '62 minutes'
  FROM backup b JOIN generated ON id = backup_id WHERE number = %(each)s - 1 AND (n %% 41 = 0 OR n %% 17 = 0);
INSERT INTO sla_status (vm_id, policy, zone, status, checked_at, newest_at, verified_at, drilled_at, warn_seconds,
                        error_seconds, backups, size, problems)
SELECT vm_id, policy, 'default',
       CASE WHEN policy IS NULL THEN 'unprotected' WHEN age > error THEN 'critical'
            WHEN age > warn OR unverified THEN 'warning' ELSE 'ok' END,
       %(now)s, at, CASE WHEN NOT unverified THEN at + interval '5 minutes' END,
       CASE WHEN n %% 5 = 0 AND n %% 35 > 0 THEN at - interval '23 hours' END, warn, error, %(each)s,
       total,
       CASE WHEN policy IS NULL THEN jsonb_build_array(jsonb_build_object('kind', 'unprotected', 'severity', 'warning',
                 'text', 'No policy of fleet.yaml matches ' || name || '.',
                 'hint', 'Add it to a policy, or leave it out.'))
            WHEN age > warn THEN jsonb_build_array(jsonb_build_object('kind', 'stale',
                 'severity', CASE WHEN age > error THEN 'critical' ELSE 'warning' END,
                 'text', 'The newest restorable backup of ' || name || ' is ' || age / 3600 || ' hours old; policy '
                         || policy || ' promises ' || error / 3600 || ' hours at most.',
                 'hint', 'Look at its last runs of nas_backup; back it up now if none is on its way.'))
            WHEN unverified THEN jsonb_build_array(jsonb_build_object('kind', 'not_verified', 'severity', 'warning',
                 'text', 'A layer of the newest backup of ' || name || ' was never read back.',
                 'hint', 'Run `nasbackup verify` on its newest backup.'))
            ELSE '[]' END
  FROM (SELECT vm_id, sum(size) AS total FROM generated GROUP BY vm_id) held
  JOIN (SELECT vm_id, name, n, at, extract(epoch FROM %(now)s::timestamptz - at)::bigint AS age, policy,
               n %% 19 = 0 AS unverified,
               CASE policy WHEN 'gold' THEN 14 * 3600 WHEN 'standard' THEN 26 * 3600 END AS warn,
               CASE policy WHEN 'gold' THEN 26 * 3600 WHEN 'standard' THEN 50 * 3600 END AS error
          FROM generated CROSS JOIN LATERAL (SELECT CASE WHEN n %% 23 = 0 THEN NULL WHEN n %% 4 = 0 THEN 'gold'
                                                         ELSE 'standard' END AS policy) p
         WHERE number = %(each)s - 1) f USING (vm_id);
INSERT INTO sla_look (host, looked_at) VALUES (%(host)s, %(now)s)
    ON CONFLICT (host) DO UPDATE SET looked_at = greatest(sla_look.looked_at, EXCLUDED.looked_at);
INSERT INTO sla_day (day, vm_id, policy, looks, compliant)
SELECT (%(now)s::timestamptz AT TIME ZONE 'UTC')::date - back, vm_id, policy, 288,
       288 - CASE WHEN (n + back * 3) %% 97 = 0 THEN 40 + n %% 90 WHEN status = 'critical' AND back < 2 THEN 280
                  ELSE 0 END
  FROM sla_status JOIN generated USING (vm_id), generate_series(0, 29) back
 WHERE policy IS NOT NULL AND number = %(each)s - 1;
INSERT INTO sla_policy_day (day, policy, looks, compliant)
SELECT day, policy, sum(looks), sum(compliant) FROM sla_day
 WHERE vm_id IN (SELECT vm_id FROM generated) GROUP BY day, policy
    ON CONFLICT (day, policy) DO UPDATE SET looks = sla_policy_day.looks + EXCLUDED.looks,
                                            compliant = sla_policy_day.compliant + EXCLUDED.compliant;
INSERT INTO alert (kind, subject_kind, subject, label, severity, text, hint, opened_at, updated_at)
SELECT p->>'kind', 'vm', uuid::text, name, p->>'severity', p->>'text', p->>'hint',
       %(now)s::timestamptz - make_interval(mins => 20 + vm_id::int * 37 %% 900), %(now)s
  FROM sla_status JOIN vm USING (vm_id), jsonb_array_elements(problems) p
 WHERE vm_id IN (SELECT vm_id FROM generated)
    ON CONFLICT (kind, subject_kind, subject) WHERE closed_at IS NULL DO NOTHING;
INSERT INTO alert (kind, subject_kind, subject, label, severity, text, hint, opened_at, updated_at, closed_at)
SELECT 'stale', 'vm', uuid::text, vm.name, CASE WHEN back %% 3 = 0 THEN 'critical' ELSE 'warning' END,
       'The newest restorable backup of ' || vm.name || ' is ' || 27 + back || ' hours old.',
       'Look at its last runs of nas_backup; back it up now if none is on its way.', at, at + interval '3 hours',
       at + interval '3 hours'
  FROM generated JOIN vm USING (vm_id) CROSS JOIN generate_series(1, 3) back
 CROSS JOIN LATERAL (SELECT %(now)s::timestamptz - make_interval(days => back * 2, mins => n * 7 %% 1000) AS began) t
 WHERE number = %(each)s - 1 AND n %% 29 = 3;
INSERT INTO alert_delivery (alert_id, channel, event, created_at, delivered_at, tries, error)
SELECT alert_id, channel, 'opened', opened_at, CASE WHEN channel = 'ops' THEN opened_at + interval '4 seconds' END,
       CASE WHEN channel = 'ops' THEN 1 ELSE 3 END, CASE WHEN channel <> 'ops' THEN 'connection refused' END
  FROM alert, (VALUES ('ops'), ('chat')) c (channel)
 WHERE subject IN (SELECT uuid::text FROM vm JOIN generated USING (vm_id)) AND (channel = 'ops' OR alert_id %% 4 = 0);
INSERT INTO capacity_sample (repository_id, measured_at, total, free, backups)
SELECT repository_id, %(now)s::timestamptz - make_interval(days => back), 40 * 1099511627776::bigint,
       (8200 + back * 95 + back * 7919 %% 160) * 1073741824::bigint,
       (31000 - back * 90 - back * 7919 %% 160) * 1073741824::bigint
  FROM repository, generate_series(0, 120) back WHERE name = %(repository)s ON CONFLICT DO NOTHING;
"""

# The first VM whose newest backup is not late is being backed up: one volume is copied, one is halfway, one waits.
RUNNING = """
INSERT INTO lease (vm_id, holder, expires_at)
SELECT vm_id, 'nas_backup/generated', %(now)s::timestamptz + interval '1 year'
  FROM vm WHERE uuid = md5(%(prefix)s || 3)::uuid;
INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_id, chain_position,
                    parent_id, checkpoint, host, vm_state, request, run_id, lease_token, created_at)
SELECT vm_id, repository_id, vm.name || '/' || to_char((%(now)s::timestamptz - interval '4 minutes') AT TIME ZONE 'UTC',
       'YYYY.MM.DD.HH24.MI.SS'), 'INCREMENTAL', 'BackingUp', 'incremental', 'incremental: the changed blocks',
       chain_id, chain_position + 1, backup_id, 'backup-1', vm.host, 'running', '{}', 'generated', 1,
       %(now)s::timestamptz - interval '4 minutes'
  FROM backup b JOIN vm USING (vm_id) WHERE vm.uuid = md5(%(prefix)s || 3)::uuid AND status = 'BackedUp'
 ORDER BY begun DESC LIMIT 1;
INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type, reason, backing,
                           bytes_read, bytes_written, digest, copy_seconds, verified_at)
SELECT backup_id, ordinal, disk, '/images/' || disk || '.qcow2', 'vd' || chr(97 + ordinal), 'qcow2',
       'datadisk.' || disk || '.qcow2', 107374182400, 'INCREMENTAL', 'incremental', '../parent/' || disk || '.qcow2',
       CASE WHEN ordinal = 0 THEN 3221225472 END, CASE WHEN ordinal = 0 THEN 3221225472 END,
       CASE WHEN ordinal = 0 THEN 'generated' END, CASE WHEN ordinal = 0 THEN 18.5 END,
       CASE WHEN ordinal = 0 THEN %(now)s::timestamptz END
  FROM backup JOIN vm USING (vm_id), (VALUES (0, 'ROOT'), (1, 'DATA'), (2, 'LOGS')) v (ordinal, disk)
 WHERE vm.uuid = md5(%(prefix)s || 3)::uuid AND status = 'BackingUp';
INSERT INTO copy_progress (backup_id, name, phase, done, total, seconds)
SELECT backup_id, 'DATA', 'data', 11811160064, 19327352832, 96.5 FROM backup JOIN vm USING (vm_id)
 WHERE vm.uuid = md5(%(prefix)s || 3)::uuid AND status = 'BackingUp';
"""

REMOVE = """
CREATE TEMPORARY TABLE leaving ON COMMIT DROP AS
SELECT vm_id, uuid FROM vm WHERE starts_with(name, %(prefix)s);
UPDATE sla_policy_day d SET looks = d.looks - g.looks, compliant = d.compliant - g.compliant
  FROM (SELECT day, policy, sum(looks) AS looks, sum(compliant) AS compliant FROM sla_day
         WHERE vm_id IN (SELECT vm_id FROM leaving) GROUP BY day, policy) g
 WHERE g.day = d.day AND g.policy = d.policy;
DELETE FROM sla_policy_day WHERE looks = 0;
DELETE FROM alert WHERE subject IN (SELECT uuid::text FROM leaving) OR starts_with(label, %(prefix)s);
DELETE FROM drill WHERE vm_id IN (SELECT vm_id FROM leaving);
DELETE FROM lease WHERE vm_id IN (SELECT vm_id FROM leaving);
DELETE FROM active_checkpoint WHERE vm_id IN (SELECT vm_id FROM leaving);
DELETE FROM backup WHERE vm_id IN (SELECT vm_id FROM leaving);
DELETE FROM retired_checkpoint WHERE vm_id IN (SELECT vm_id FROM leaving);
DELETE FROM vm WHERE vm_id IN (SELECT vm_id FROM leaving);
"""


def backups(database: Database, plan: Plan) -> None:
    """VMs and their backups alone, all of them restorable: what retention and decisions are measured with."""
    with database.transaction() as cursor:
        cursor.execute(BACKUPS, {**asdict(plan), "pending": False})
    _analyze(database)


def fleet(database: Database, plan: Plan, *, running: bool = True) -> None:
    """With verdicts, compliance, alerts, drills, capacity, and a backup that is being made."""
    with database.transaction() as cursor:
        values = {**asdict(plan), "pending": True}
        cursor.execute(BACKUPS, values)
        cursor.execute(STATUSES, values)
        if running:
            cursor.execute(RUNNING, values)
    _analyze(database)


def remove(database: Database, *, prefix: str) -> None:
    """All VMs whose names begin so, with everything that is known of them. Repositories and their samples stay."""
    with database.transaction() as cursor:
        cursor.execute(REMOVE, {"prefix": prefix})


def _analyze(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("ANALYZE")
