"""Full and incremental backups of KVM virtual machines to a NAS."""
