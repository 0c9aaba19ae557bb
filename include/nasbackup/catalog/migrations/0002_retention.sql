-- Deletion and retention: what may go, what has to stay, and what is remembered of what went.

-- A failed backup of which nothing is left is no child any more: its row gives the parent up when that one goes. Every
-- other incremental keeps its parent, and PostgreSQL refuses a deletion that would take one away from it.
ALTER TABLE backup
    DROP CONSTRAINT backup_parent_id_fkey,
    ADD CONSTRAINT backup_parent_id_fkey FOREIGN KEY (parent_id) REFERENCES backup ON DELETE SET NULL,
    DROP CONSTRAINT backup_check,
    ADD CONSTRAINT backup_parent_of_type
        CHECK ((type = 'FULL') = (parent_id IS NULL)
               OR (type = 'INCREMENTAL' AND status IN ('Failed', 'Deleting'))), -- Deleting: a failed one, in its turn
    -- A backup is named by its external id alone, whichever repository it is in.
    DROP CONSTRAINT backup_repository_id_external_id_key,
    ADD CONSTRAINT backup_external_id_key UNIQUE (external_id),
    ADD COLUMN pinned_at  timestamptz,             -- kept until it is unpinned
    ADD COLUMN expires_at timestamptz;             -- kept until then, and no longer, whatever the policy says
DROP INDEX backup_by_external_id;

-- The order in which backups were begun, which no clock can turn round. Not their number: one that is recovered from the
-- NAS goes to its place between those that are there (hence numeric).
CREATE SEQUENCE backup_begun;
ALTER TABLE backup ADD COLUMN begun numeric NOT NULL DEFAULT nextval('backup_begun');
UPDATE backup SET begun = backup_id;
SELECT setval('backup_begun', (SELECT coalesce(max(backup_id), 0) + 1 FROM backup));
ALTER SEQUENCE backup_begun OWNED BY backup.begun;
DROP INDEX backup_latest;
CREATE INDEX backup_latest ON backup (vm_id, repository_id, begun DESC) WHERE status = 'BackedUp';

-- A child in any state keeps its parent, until nothing of it is left.
CREATE VIEW live_child AS
    SELECT parent_id, backup_id, external_id, begun FROM backup
     WHERE parent_id IS NOT NULL AND NOT (status = 'Failed' AND cleaned_at IS NOT NULL);

CREATE INDEX backup_of_vm ON backup (vm_id, repository_id, begun);
CREATE INDEX backup_leaving ON backup (vm_id) WHERE status IN ('DeletePending', 'Deleting');

-- When nas_retention first saw that no policy matches the VM, or that its host does not define it any more.
ALTER TABLE vm ADD COLUMN unprotected_since timestamptz;

-- Checkpoints of backups whose rows are gone. An image may still have their bitmaps, a detached one for a long time:
-- they are ours to drop when it comes back.
CREATE TABLE retired_checkpoint (
    vm_id           bigint NOT NULL REFERENCES vm,
    checkpoint      text NOT NULL,
    retired_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (vm_id, checkpoint)
);

-- How full a repository was, measured once a run of nas_retention: the ground for "full in N days".
CREATE TABLE capacity_sample (
    repository_id   bigint NOT NULL REFERENCES repository,
    measured_at     timestamptz NOT NULL,
    total           bigint NOT NULL CHECK (total >= 0),
    free            bigint NOT NULL CHECK (free >= 0),
    backups         bigint NOT NULL CHECK (backups >= 0),   -- bytes of the backups that the catalog knows
    PRIMARY KEY (repository_id, measured_at)
);
