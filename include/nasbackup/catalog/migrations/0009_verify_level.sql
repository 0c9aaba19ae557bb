-- A backup of verify level "structure" is recorded although nobody has read its layers back: verified_at stays NULL.
ALTER TABLE backup_volume
    ADD checked_at  timestamptz,                   -- when it passed what its backup's verify level asks for
    ADD compression text NOT NULL DEFAULT 'none' CHECK (compression IN ('none', 'zstd', 'zlib'));
