-- When nas_sla_watch last looked at a host and told what it found, whether the host has VMs or not. Airflows that share
-- the catalog look at different hosts: one that has fallen silent is not hidden by another.
CREATE TABLE sla_look (
    host            text PRIMARY KEY,
    looked_at       timestamptz NOT NULL
);
INSERT INTO sla_look (host, looked_at)
SELECT vm.host, max(s.checked_at) FROM sla_status s JOIN vm USING (vm_id) GROUP BY vm.host;
