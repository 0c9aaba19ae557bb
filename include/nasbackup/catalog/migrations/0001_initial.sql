-- The catalog: what was backed up, what is being backed up, and who may change it.
-- Sizes are bytes, times are timestamptz. States and types are checked here as well as in the code, so that
-- no client can write a word that the others do not know.

CREATE TABLE repository (
    repository_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL UNIQUE,
    uuid            uuid NOT NULL UNIQUE,          -- the same as in the marker file at the repository's root
    type            text NOT NULL CHECK (type IN ('local', 'nfs', 'cifs', 'ceph')),
    path            text NOT NULL,
    address         text NOT NULL DEFAULT '',
    registered_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE vm (
    vm_id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uuid            uuid NOT NULL UNIQUE,
    name            text NOT NULL,
    host            text NOT NULL,
    first_seen_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX vm_name ON vm (name);

-- One writer per VM. The token grows with every new holder and is never used twice: a holder shows its token
-- with each write, and a holder whose lease was taken over cannot write any more (fencing).
CREATE SEQUENCE lease_token;
CREATE TABLE lease (
    vm_id           bigint PRIMARY KEY REFERENCES vm,
    holder          text NOT NULL,
    token           bigint NOT NULL UNIQUE DEFAULT nextval('lease_token'),
    acquired_at     timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL
);

CREATE TABLE backup (
    backup_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vm_id           bigint NOT NULL REFERENCES vm,
    repository_id   bigint NOT NULL REFERENCES repository,
    external_id     text NOT NULL,                 -- <instance-name>/<yyyy.MM.dd.HH.mm.ss>, UTC
    type            text NOT NULL CHECK (type IN ('FULL', 'INCREMENTAL')),
    status          text NOT NULL
                    CHECK (status IN ('BackingUp', 'BackedUp', 'Failed', 'DeletePending', 'Deleting')),
    reason          text NOT NULL,                 -- the row of the decision table
    explanation     text NOT NULL,
    consistency     text CHECK (consistency IN ('crash', 'filesystem')),
    chain_id        uuid,                          -- null: a full outside every chain (incremental disabled)
    chain_position  integer NOT NULL CHECK (chain_position >= 0),
    parent_id       bigint REFERENCES backup,
    checkpoint      text,
    host            text NOT NULL,
    vm_state        text NOT NULL CHECK (vm_state IN ('running', 'paused', 'stopped')),
    request         jsonb NOT NULL,                -- what was asked for, in case the decision has to be made again
    run_id          text NOT NULL,
    lease_token     bigint NOT NULL,
    created_at      timestamptz NOT NULL,
    recorded_at     timestamptz,
    size            bigint CHECK (size >= 0),
    error           text,
    cleaned_at      timestamptz,                   -- Failed: nothing of it is left on host and NAS
    UNIQUE (repository_id, external_id),
    CHECK ((type = 'FULL') = (parent_id IS NULL)),
    CHECK ((type = 'FULL') = (chain_position = 0)),
    CHECK ((status = 'BackedUp') <= (recorded_at IS NOT NULL AND size IS NOT NULL))
);
CREATE INDEX backup_latest ON backup (vm_id, repository_id, backup_id DESC) WHERE status = 'BackedUp';
CREATE INDEX backup_children ON backup (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX backup_by_external_id ON backup (external_id);
CREATE INDEX backup_unfinished ON backup (vm_id) WHERE status = 'Failed' AND cleaned_at IS NULL;
-- The database itself refuses two backups of one VM at once.
CREATE UNIQUE INDEX backup_one_open_per_vm ON backup (vm_id) WHERE status = 'BackingUp';

CREATE TABLE backup_volume (
    backup_id       bigint NOT NULL REFERENCES backup ON DELETE CASCADE,
    ordinal         integer NOT NULL,              -- order of presentation only; the identity is the source
    name            text NOT NULL,
    source          text NOT NULL,
    target          text NOT NULL,
    format          text NOT NULL,
    file            text NOT NULL,                 -- name inside the backup's directory
    virtual_size    bigint NOT NULL CHECK (virtual_size > 0),
    type            text NOT NULL CHECK (type IN ('FULL', 'INCREMENTAL')),
    reason          text NOT NULL,
    backing         text,                          -- relative reference to the parent's file
    source_stamp    text,                          -- stopped VM: tells whether the image was touched since
    attempt         text,                          -- the only attempt that may be published
    bytes_read      bigint,
    bytes_written   bigint,
    digest          text,
    copy_seconds    double precision,
    verified_at     timestamptz,
    PRIMARY KEY (backup_id, name),
    UNIQUE (backup_id, source),
    UNIQUE (backup_id, file),
    CHECK ((type = 'FULL') = (backing IS NULL))
);

-- Null checkpoint (or no row): the next backup is full.
CREATE TABLE active_checkpoint (
    vm_id           bigint NOT NULL REFERENCES vm,
    repository_id   bigint NOT NULL REFERENCES repository,
    checkpoint      text,
    backup_id       bigint REFERENCES backup,
    changed_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (vm_id, repository_id),
    CHECK ((checkpoint IS NULL) = (backup_id IS NULL))
);
