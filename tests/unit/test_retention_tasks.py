"""How the work of one run of ``nas_retention`` is divided, and whom a report takes for protected."""

from __future__ import annotations

from nasbackup.airflow.retention_tasks import _per_vm
from nasbackup.catalog.restore_points import KnownVm
from nasbackup.fleet import Fleet, Policy, Selector, Zone
from nasbackup.steps.retention import Defined, _protection

VM = KnownVm(vm_id=1, vm="i-2-1-VM", vm_uuid="uuid-1", host="kvm_one", unprotected_since=None)
FLEET = Fleet(
    zones=(Zone(name="default", hosts=("kvm_one", "kvm_two"), repositories=("nas",)),),
    policies=(Policy(name="standard", selector=Selector(vms=("i-2-*",))),),
)


def test_one_task_deletes_of_one_vm_whatever_its_chains_and_repositories() -> None:
    """Two tasks of one run would take the VM's lease from each other."""
    work = _per_vm(
        [
            ("i-2-1-VM", "uuid-1", "kvm_one", {"chain": "a", "repository": "nas_one"}),
            ("i-2-2-VM", "uuid-2", "kvm_one", {"chain": "b", "repository": "nas_one"}),
            ("i-2-1-VM", "uuid-1", "kvm_one", {"chain": "c", "repository": "nas_two"}),
            ("i-2-1-VM", "uuid-9", "kvm_two", {"chain": "d", "repository": "nas_one"}),
        ]
    )
    found = {entry["vm_uuid"]: [chain["chain"] for chain in entry["chains"]] for entry in work}
    assert found == {"uuid-1": ["a", "c"], "uuid-2": ["b"], "uuid-9": ["d"]}


def protected(defined: Defined) -> bool:
    return _protection(VM, fleet=FLEET, defined=defined)[0] is not None


def test_a_vm_is_undefined_only_when_no_host_has_it_and_all_could_be_asked() -> None:
    here, nothing = frozenset({"uuid-1"}), frozenset({"uuid-7"})
    assert protected({"kvm_one": here, "kvm_two": nothing})
    assert protected({"kvm_one": nothing, "kvm_two": here}), "it has moved; the catalog does not know yet"
    assert protected({"kvm_one": nothing, "kvm_two": None}), "it may be on the host that does not answer"
    assert protected({}), "nobody was asked"
    assert not protected({"kvm_one": nothing, "kvm_two": nothing})
