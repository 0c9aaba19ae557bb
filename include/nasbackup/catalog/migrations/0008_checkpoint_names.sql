-- Whether a VM has had a checkpoint of some name is asked before each backup, of all that it ever had.
CREATE INDEX backup_checkpoint ON backup (vm_id, checkpoint) WHERE checkpoint IS NOT NULL;
