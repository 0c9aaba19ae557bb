"""Is there room for the coming backup, on the NAS and on the host? Asked before anything is begun."""

from __future__ import annotations

from nasbackup import estimate
from nasbackup.hypervisor import scratch
from nasbackup.model import ChainDecision, Vm
from nasbackup.nas.capacity import require_space
from nasbackup.nas.watchdog import watched
from nasbackup.steps.ticket import Site


def require_room(site: Site, *, vm: Vm, decision: ChainDecision, layers: estimate.History) -> None:
    """Raises RepositoryFull, HostNotReady, both with numbers."""
    allocated = {volume.source: volume.allocated for volume in vm.volumes}
    needs = estimate.nas_bytes(decision.volumes, allocated=allocated, history=layers)
    watched(site.repository, "reading the free space", require_space, site.repository, root=site.root(), needs=needs)
    if decision.vm_state.has_qemu:
        scratch.require_room(
            site.host, needs=estimate.scratch_bytes(decision.volumes, allocated=allocated, history=layers)
        )
