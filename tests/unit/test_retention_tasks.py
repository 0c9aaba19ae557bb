"""How the work of one run of ``nas_retention`` is divided, and whom a report takes for protected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from nasbackup.airflow import deletion_tasks
from nasbackup.airflow.retention_tasks import _per_vm, _to_do
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


def test_vms_that_are_left_for_the_next_night_come_first_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backup a day there is one to delete of every VM, every night, and Airflow takes so many tasks only."""
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    waiting = dict.fromkeys(("uuid-1", "uuid-2", "uuid-3", "uuid-4", "uuid-5"), 0)
    had_a_turn: set[str] = set()
    for _ in range(3):
        waiting = {uuid: number + 1 for uuid, number in waiting.items()}
        vms = [vm_with_work(uuid, deletions=number) for uuid, number in waiting.items()]
        found = _to_do(vms, dry_run=False, question=None)
        assert len(found["work"]) == 2
        assert found["would_delete_count"] == sum(waiting.values())
        had_a_turn |= {work["vm_uuid"] for work in found["work"]}
        waiting |= {work["vm_uuid"]: 0 for work in found["work"]}
    assert had_a_turn == waiting.keys()


def vm_with_work(uuid: str, *, deletions: int) -> dict[str, Any]:
    """In two chains, if there are so many."""
    names = [(f"{uuid}/{number}", "no_rule_keeps_it") for number in range(deletions)]
    chains = [{"chain": "a", "delete": names[:1], "size": 1}, {"chain": "b", "delete": names[1:], "size": 1}]
    return {"vm": f"VM of {uuid}", "vm_uuid": uuid, "host": "kvm_one", "chains": chains}


def test_the_last_backups_of_vms_are_asked_about_apart() -> None:
    vms = [vm_with_work(f"uuid-{number}", deletions=2) for number in range(14)]
    bereft = {f"uuid-{number}": f"VM of uuid-{number}" for number in range(1, 14)}
    found = _to_do(vms, dry_run=False, question="it would delete a lot", bereft=bereft)
    assert [work["vm_uuid"] for work in found["work"]] == ["uuid-0"]
    assert found["question"] == "it would delete a lot"
    assert {work["vm_uuid"] for work in found["last"]} == bereft.keys()
    assert found["last_question"].startswith("it would delete the last backup of VM of uuid-1, VM of uuid-2, ")
    assert found["last_question"].endswith("VM of uuid-10 and 3 more")
    assert _to_do(vms[1:], dry_run=False, question="it would delete a lot", bereft=bereft)["question"] == ""
    nothing = _to_do(vms, dry_run=True, question="it would delete a lot", bereft=bereft)
    assert [nothing[key] for key in ("work", "question", "last", "last_question")] == [[], "", [], ""]
    assert nothing["would_delete_count"] == 28


def test_the_vms_own_host_is_asked_first_and_others_only_when_it_does_not_define_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One host that hangs would hold up each VM of all the others."""
    answers = {"kvm_one": frozenset({"uuid-1"}), "kvm_two": frozenset({"uuid-2"}), "kvm_silent": None}
    asked: list[str] = []

    def ask(names: Sequence[str]) -> dict[str, frozenset[str] | None]:
        asked.extend(names)
        return {name: answers[name] for name in names}

    monkeypatch.setattr(deletion_tasks, "defined_vms", ask)
    found = deletion_tasks._where([*answers], vm_uuid="uuid-1", host="kvm_one")
    assert (found, asked) == ({"kvm_one": answers["kvm_one"]}, ["kvm_one"])
    for host in ("kvm_one", "kvm_silent", "kvm_gone"):  # it has moved, or its host cannot be asked, or is no more
        asked.clear()
        assert deletion_tasks._where([*answers], vm_uuid="uuid-2", host=host) == answers
        assert sorted(asked) == sorted(answers), "each once"


def protected(defined: Defined, *, vm: KnownVm = VM) -> bool:
    return _protection(vm, fleet=FLEET, defined=defined).policy is not None


def test_a_vm_is_undefined_only_when_no_host_has_it_and_all_could_be_asked() -> None:
    here, nothing = frozenset({"uuid-1"}), frozenset({"uuid-7"})
    assert protected({"kvm_one": here, "kvm_two": nothing})
    assert protected({"kvm_one": nothing, "kvm_two": here}), "it has moved; the catalog does not know yet"
    assert protected({"kvm_one": nothing, "kvm_two": None}), "it may be on the host that does not answer"
    assert protected({}), "nobody was asked"
    assert not protected({"kvm_one": nothing, "kvm_two": nothing})


def test_one_that_was_undefined_stays_so_until_somebody_has_seen_it() -> None:
    here, nothing = frozenset({"uuid-1"}), frozenset({"uuid-7"})
    gone = replace(VM, unprotected_since=datetime(2026, 1, 1, tzinfo=UTC))
    assert not protected({"kvm_one": nothing, "kvm_two": None}, vm=gone)
    assert not protected({"kvm_one": None, "kvm_two": None}, vm=gone)
    assert protected({"kvm_one": None, "kvm_two": here}, vm=gone), "it is back"
    assert protected({}, vm=gone), "nobody was asked: what the policy says is told"
    for silent in (None, nothing):
        found = _protection(gone, fleet=FLEET, defined={"kvm_one": nothing, "kvm_two": silent})
        assert found.sure == (silent is not None), "nothing of it goes in that night"
