-- Restores: what one has written and moved so far, so that its retry, or whoever comes after it, can go on or undo it.

-- One restore of a VM at a time, as with everything that needs the VM's lease. `vm_id`: whose backup it is.
CREATE TABLE restore (
    vm_id           bigint PRIMARY KEY REFERENCES vm,
    key             text NOT NULL,                 -- names what this restore writes, the same in all its tries
    state           text NOT NULL CHECK (state IN ('staging', 'moving', 'done')),
    plan            jsonb NOT NULL,
    begun_at        timestamptz NOT NULL DEFAULT now()
);
