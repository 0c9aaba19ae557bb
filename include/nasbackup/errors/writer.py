"""One writer per VM: who is refused, and who has to stop."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError


class VmBusy(NasBackupError):
    template = "VM {vm} is in use by {holder} until {until} at the latest. Wait for it, or end that run first."
    retryable = True


class LeaseLost(NasBackupError):
    """The holder's lease expired or was taken over (fencing): it must not write any more."""

    template = "{holder} no longer holds the lease of VM {vm}: another run took over; this one stops."


class AttemptSuperseded(NasBackupError):
    """A newer attempt of the same step is named in the catalog; what this one wrote is discarded."""

    template = "Attempt {attempt} of volume {volume} was replaced by a newer attempt; what it wrote is discarded."


class BackupNotOpen(NasBackupError):
    template = "Backup {backup} is {status}, not BackingUp: this step cannot go on. Start a new run."
