-- Backups that are read for long, and what restore drills found.

-- A reader keeps its backup as a child would: a deletion meanwhile makes it delete-pending. Backups of the VM go on,
-- which they could not if a reader held the VM's lease for hours.
CREATE TABLE reading (
    reading_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    backup_id       bigint NOT NULL REFERENCES backup ON DELETE CASCADE,
    reader          text NOT NULL,                 -- for the person who waits for its end
    begun_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz NOT NULL           -- a reader that died keeps nothing for long
);
CREATE INDEX reading_of_backup ON reading (backup_id);

CREATE OR REPLACE VIEW live_child AS
    SELECT parent_id, backup_id, external_id, begun FROM backup
     WHERE parent_id IS NOT NULL AND NOT (status = 'Failed' AND cleaned_at IS NOT NULL)
     UNION ALL
    SELECT backup_id, NULL, reader, NULL FROM reading WHERE expires_at > clock_timestamp();

-- History outlives the backup: that a VM was proven restorable stays true of the VM.
CREATE TABLE drill (
    drill_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vm_id           bigint NOT NULL REFERENCES vm,
    backup_id       bigint REFERENCES backup ON DELETE SET NULL,
    external_id     text NOT NULL,
    started_at      timestamptz NOT NULL,
    finished_at     timestamptz NOT NULL,
    result          text NOT NULL CHECK (result IN ('ok', 'failed')),
    rto_seconds     double precision CHECK (rto_seconds >= 0), -- from the begin until the guest answered
    how             text NOT NULL,                 -- what counted as an answer
    detail          text NOT NULL DEFAULT '',
    CHECK ((result = 'ok') <= (rto_seconds IS NOT NULL))
);
CREATE INDEX drill_of_vm ON drill (vm_id, started_at DESC);
CREATE INDEX drill_of_backup ON drill (backup_id) WHERE backup_id IS NOT NULL;
