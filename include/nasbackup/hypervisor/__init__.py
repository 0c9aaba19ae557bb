"""libvirt: what a host runs, the pull-mode backup job, checkpoints, freeze and thaw."""

from nasbackup.hypervisor.connection import Hypervisor, connect

__all__ = ["Hypervisor", "connect"]
