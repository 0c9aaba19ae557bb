-- What was promised, what was seen, and who was told: the ground for nas_sla_watch and for the page.

-- As the hosts described the VM when nas_sla_watch last asked them. The time is null for a VM that it never saw.
ALTER TABLE vm
    ADD COLUMN title        text NOT NULL DEFAULT '',
    ADD COLUMN metadata     jsonb NOT NULL DEFAULT '{}',    -- namespace URI -> text of the domain's <metadata> elements
    ADD COLUMN state        text CHECK (state IN ('running', 'paused', 'stopped')),
    ADD COLUMN defined      boolean NOT NULL DEFAULT true,  -- false: its host was asked and does not define it any more
    ADD COLUMN seen_at      timestamptz;

-- A copy that is running: written every few seconds, in the transaction that renews the lease.
CREATE TABLE copy_progress (
    backup_id       bigint NOT NULL,
    name            text NOT NULL,
    phase           text NOT NULL CHECK (phase IN ('survey', 'data', 'flush')),
    done            bigint NOT NULL,                        -- bytes read so far
    total           bigint NOT NULL,                        -- bytes to be read; 0 while that is being found out
    seconds         double precision NOT NULL,              -- since the copy of this attempt began
    reported_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (backup_id, name),
    FOREIGN KEY (backup_id, name) REFERENCES backup_volume ON DELETE CASCADE
);

-- One row per VM: the verdict of the last look. Replaced as a whole; `problems` says why it is what it is.
CREATE TABLE sla_status (
    vm_id           bigint PRIMARY KEY REFERENCES vm ON DELETE CASCADE,
    policy          text,                                   -- null: no policy matches it, it is unprotected
    zone            text,
    status          text NOT NULL CHECK (status IN ('ok', 'warning', 'critical', 'unprotected')),
    checked_at      timestamptz NOT NULL,
    newest_at       timestamptz,                            -- point in time of the newest restorable backup
    verified_at     timestamptz,                            -- when a backup of it was last read back
    drilled_at      timestamptz,                            -- when a drill last succeeded
    warn_seconds    bigint,                                 -- the RPO: older than this is a warning …
    error_seconds   bigint,                                 -- … and older than this is a breach
    backups         integer NOT NULL DEFAULT 0,             -- restorable ones
    size            bigint NOT NULL DEFAULT 0,              -- bytes of them on the NAS, and of those that wait for them
    problems        jsonb NOT NULL DEFAULT '[]'             -- [{kind, severity, text, hint}]
);
CREATE INDEX sla_status_by_status ON sla_status (status, vm_id);

-- Compliance over time: how many looks a day, and how many of them found the VM within its RPO. Days are UTC.
CREATE TABLE sla_day (
    day             date NOT NULL,
    vm_id           bigint NOT NULL REFERENCES vm ON DELETE CASCADE,
    policy          text NOT NULL,
    looks           integer NOT NULL,
    compliant       integer NOT NULL CHECK (compliant BETWEEN 0 AND looks),
    PRIMARY KEY (day, vm_id, policy)
);
CREATE INDEX sla_day_of_vm ON sla_day (vm_id, day);
-- The same per policy, for the fleet's page: summing a month of ten thousand VMs is not quick.
CREATE TABLE sla_policy_day (
    day             date NOT NULL,
    policy          text NOT NULL,
    looks           bigint NOT NULL,
    compliant       bigint NOT NULL CHECK (compliant BETWEEN 0 AND looks),
    PRIMARY KEY (day, policy)
);

-- An alert is opened once, updated while it lasts, and closed when what it says is true no more.
CREATE TABLE alert (
    alert_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            text NOT NULL,                          -- nasbackup.sla.findings.Kind
    subject_kind    text NOT NULL CHECK (subject_kind IN ('vm', 'repository', 'host')),
    subject         text NOT NULL,                          -- a VM's UUID, a repository's or host's name
    label           text NOT NULL,                          -- what people call it
    severity        text NOT NULL CHECK (severity IN ('warning', 'critical')),
    text            text NOT NULL,                          -- what is wrong
    hint            text NOT NULL,                          -- what to do
    opened_at       timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    closed_at       timestamptz
);
CREATE UNIQUE INDEX alert_open_once ON alert (kind, subject_kind, subject) WHERE closed_at IS NULL;
CREATE INDEX alert_by_time ON alert (opened_at DESC);
CREATE INDEX alert_of_subject ON alert (subject_kind, subject, opened_at DESC);

-- What has to be told through which channel of fleet.yaml, and whether it was.
CREATE TABLE alert_delivery (
    delivery_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id        bigint NOT NULL REFERENCES alert ON DELETE CASCADE,
    channel         text NOT NULL,
    event           text NOT NULL CHECK (event IN ('opened', 'raised', 'lowered', 'closed')),
    created_at      timestamptz NOT NULL,
    delivered_at    timestamptz,
    tries           integer NOT NULL DEFAULT 0,
    error           text
);
CREATE INDEX alert_delivery_open ON alert_delivery (channel, delivery_id) WHERE delivered_at IS NULL;

-- The last few backups of a VM, wherever they went.
CREATE INDEX backup_recent ON backup (vm_id, begun DESC);
