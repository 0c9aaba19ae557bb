-- An alert that was closed because nobody looks at its subject any more: it may still be true.
ALTER TABLE alert
    ADD COLUMN forgotten boolean NOT NULL DEFAULT false;

-- When nas_sla_watch last asked how full the repository is (once an hour, whoever asks), and why it got no answer.
ALTER TABLE repository
    ADD COLUMN measure_asked_at timestamptz,
    ADD COLUMN measure_error    text;
