-- Alerts of what comes and goes by itself are closed, or get less severe, only when nothing was found for a while.
ALTER TABLE alert
    ADD COLUMN confirmed_at timestamptz NOT NULL DEFAULT now();     -- the last look that found it as severe as this
-- Who was told of an alert, and the outbox: one opening per alert and channel.
CREATE INDEX alert_delivery_of_alert ON alert_delivery (alert_id);
CREATE UNIQUE INDEX alert_delivery_opening ON alert_delivery (alert_id, channel) WHERE event = 'opened';
