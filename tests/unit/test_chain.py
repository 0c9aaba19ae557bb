"""The decision table of decide_chain: each row fires, and where several would, the first one wins."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup import layout
from nasbackup.chain import ChainState, decide_chain
from nasbackup.model import (
    BackupType,
    ChainDecision,
    Mode,
    Reason,
    Vm,
    VmState,
    Volume,
    VolumeReason,
)
from nasbackup.settings import Settings

from tests.unit.builders import CHAIN_ID, DATA, GIB, ROOT, past_backup, past_volume, vm, volume

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
NEW_CHECKPOINT = "backup-2"
NEW_CHAIN = "5b1f2c1e-0000-4000-8000-0000000000c2"


def incremental_state(**changes: Any) -> ChainState:
    """Everything stands for an incremental on a full: row 10."""
    return replace(
        ChainState(
            vm=vm(),
            mode=Mode.AUTO,
            settings=Settings(),
            active_checkpoint="backup-1",
            latest=past_backup(),
            usable_bitmaps={ROOT: True, DATA: True},
        ),
        **changes,
    )


def decide(state: ChainState) -> ChainDecision:
    return decide_chain(state, new_checkpoint=NEW_CHECKPOINT, new_chain_id=NEW_CHAIN)


# Rows 1 to 9: the smallest change of a state that is otherwise good for an incremental. Row 4 and 7 both speak of
# full.every, so row 7 leaves it alone and makes the parent the last of its chain.
ROWS: dict[Reason, Any] = {
    Reason.INCREMENTAL_DISABLED: lambda s: replace(s, settings=replace(s.settings, incremental_enabled=False)),
    Reason.FORCED_FULL: lambda s: replace(s, mode=Mode.FULL),
    Reason.VM_STOPPED: lambda s: replace(s, vm=replace(s.vm, state=VmState.STOPPED)),
    Reason.FULL_EVERY_DISABLED: lambda s: replace(s, settings=replace(s.settings, full_every=1)),
    Reason.NO_ACTIVE_CHECKPOINT: lambda s: replace(s, active_checkpoint=None),
    Reason.LATEST_BACKUP_MISMATCH: lambda s: replace(s, latest=replace(s.latest, checkpoint="backup-0")),
    Reason.CHAIN_COMPLETE: lambda s: replace(s, latest=replace(s.latest, chain_position=9)),
    Reason.VM_RENAMED: lambda s: replace(s, vm=replace(s.vm, name="i-2-1234-VM-new")),
    Reason.BITMAP_UNUSABLE: lambda s: replace(s, usable_bitmaps={}),
}


@pytest.mark.parametrize("reason", ROWS)
def test_each_row_fires_alone_and_makes_a_full(reason: Reason) -> None:
    decision = decide(ROWS[reason](incremental_state()))
    assert decision.reason is reason
    assert decision.type is BackupType.FULL
    assert (decision.parent_id, decision.base_checkpoint, decision.chain_position) == (None, None, 0)
    assert [plan.reason for plan in decision.volumes] == [VolumeReason.FULL_BACKUP] * 2
    assert decision.explanation.startswith("full: ")


@pytest.mark.parametrize(("first", "later"), list(itertools.combinations(ROWS, 2)))
def test_the_first_row_that_matches_wins(first: Reason, later: Reason) -> None:
    assert decide(ROWS[first](ROWS[later](incremental_state()))).reason is first
    assert decide(ROWS[later](ROWS[first](incremental_state()))).reason is first


def test_all_rows_at_once_are_the_first() -> None:
    state = incremental_state()
    for change in ROWS.values():
        state = change(state)
    assert decide(state).reason is Reason.INCREMENTAL_DISABLED


def test_row_10_an_incremental_stands_on_the_latest_backup() -> None:
    decision = decide(incremental_state())
    assert decision == ChainDecision(
        type=BackupType.INCREMENTAL,
        reason=Reason.INCREMENTAL,
        explanation="incremental on i-2-1234-VM/2026.01.31.22.00.05, position 1",
        checkpoint=NEW_CHECKPOINT,
        base_checkpoint="backup-1",
        chain_id=CHAIN_ID,
        chain_position=1,
        parent_id=17,
        parent="i-2-1234-VM/2026.01.31.22.00.05",
        volumes=decision.volumes,
    )
    assert [plan.type for plan in decision.volumes] == [BackupType.INCREMENTAL] * 2
    assert [plan.reason for plan in decision.volumes] == [VolumeReason.INCREMENTAL] * 2


def test_incremental_disabled_makes_a_full_without_checkpoint_and_chain() -> None:
    decision = decide(ROWS[Reason.INCREMENTAL_DISABLED](incremental_state()))
    assert (decision.checkpoint, decision.chain_id) == (None, None)


@pytest.mark.parametrize("reason", list(ROWS)[1:])
def test_every_other_full_begins_a_chain_and_a_bitmap_of_its_own(reason: Reason) -> None:
    decision = decide(ROWS[reason](incremental_state()))
    assert (decision.checkpoint, decision.chain_id) == (NEW_CHECKPOINT, NEW_CHAIN)


def test_no_recorded_backup_at_all_is_a_mismatch_with_the_active_checkpoint() -> None:
    decision = decide(incremental_state(latest=None))
    assert decision.reason is Reason.LATEST_BACKUP_MISMATCH
    assert "no checkpoint" in decision.explanation
    assert "backup-1" in decision.explanation


def test_a_latest_backup_outside_every_chain_is_a_mismatch() -> None:
    assert decide(incremental_state(latest=past_backup(checkpoint=None))).reason is Reason.LATEST_BACKUP_MISMATCH


# --- full.every -----------------------------------------------------------------------------------------------


def with_full_every(full_every: int, *, position: int) -> ChainDecision:
    return decide(
        incremental_state(settings=Settings(full_every=full_every), latest=past_backup(chain_position=position))
    )


@pytest.mark.parametrize("full_every", [0, 1])
def test_full_every_0_and_1_make_every_backup_full(full_every: int) -> None:
    decision = with_full_every(full_every, position=0)
    assert decision.reason is Reason.FULL_EVERY_DISABLED
    assert f"full.every = {full_every}" in decision.explanation


@pytest.mark.parametrize(
    ("full_every", "position", "reason"),
    [
        (2, 0, Reason.INCREMENTAL),
        (2, 1, Reason.CHAIN_COMPLETE),
        (3, 0, Reason.INCREMENTAL),
        (3, 1, Reason.INCREMENTAL),
        (3, 2, Reason.CHAIN_COMPLETE),
    ],
)
def test_full_every_counts_the_full_too(full_every: int, position: int, reason: Reason) -> None:
    assert with_full_every(full_every, position=position).reason is reason


def test_full_every_lowered_in_mid_chain_completes_it_at_once() -> None:
    decision = with_full_every(3, position=7)
    assert decision.reason is Reason.CHAIN_COMPLETE
    assert "8 of 3" in decision.explanation


def test_full_every_raised_in_mid_chain_goes_on_from_the_parents_position() -> None:
    assert with_full_every(3, position=2).reason is Reason.CHAIN_COMPLETE
    raised = with_full_every(4, position=2)
    assert (raised.reason, raised.chain_position, raised.chain_id) == (Reason.INCREMENTAL, 3, CHAIN_ID)


# --- stopped VMs ----------------------------------------------------------------------------------------------


def test_a_stopped_vm_is_a_full_that_seeds_its_bitmap() -> None:
    decision = decide(incremental_state(vm=vm(state=VmState.STOPPED)))
    assert (decision.reason, decision.checkpoint) == (Reason.VM_STOPPED, NEW_CHECKPOINT)


def test_a_stopped_vm_is_incremental_where_the_operator_opted_in() -> None:
    opted_in = Settings(stopped_incremental_enabled=True)
    assert decide(incremental_state(vm=vm(state=VmState.STOPPED), settings=opted_in)).reason is Reason.INCREMENTAL


def test_the_opt_in_for_stopped_vms_does_not_replace_a_usable_bitmap() -> None:
    opted_in = Settings(stopped_incremental_enabled=True)
    state = incremental_state(vm=vm(state=VmState.STOPPED), settings=opted_in, usable_bitmaps={})
    assert decide(state).reason is Reason.BITMAP_UNUSABLE


@pytest.mark.parametrize("state", VmState)
@pytest.mark.parametrize("mode", Mode)
def test_the_decision_says_for_which_state_of_the_vm_it_was_made(state: VmState, mode: Mode) -> None:
    opted_in = Settings(stopped_incremental_enabled=True)
    assert decide(incremental_state(vm=vm(state=state), mode=mode, settings=opted_in)).vm_state is state


def test_a_paused_vm_is_backed_up_like_a_running_one() -> None:
    assert decide(incremental_state(vm=vm(state=VmState.PAUSED))).reason is Reason.INCREMENTAL


# --- volume by volume -----------------------------------------------------------------------------------------


def plan_of_data(state: ChainState) -> tuple[BackupType, VolumeReason, str | None]:
    """What becomes of the second volume while the first stays incremental."""
    decision = decide(state)
    assert decision.reason is Reason.INCREMENTAL
    root, data = decision.volumes
    assert (root.type, root.reason) == (BackupType.INCREMENTAL, VolumeReason.INCREMENTAL)
    return data.type, data.reason, data.backing


def test_a_new_volume_is_full_inside_the_incremental() -> None:
    assert plan_of_data(incremental_state(latest=past_backup(past_volume(ROOT)))) == (
        BackupType.FULL,
        VolumeReason.NEW_VOLUME,
        None,
    )


def test_a_replaced_image_at_the_same_target_is_a_new_volume() -> None:
    replaced = vm(volume(ROOT), volume("/images/OTHER-3.qcow2", target="vdb"))
    usable = {ROOT: True, "/images/OTHER-3.qcow2": True}
    assert plan_of_data(incremental_state(vm=replaced, usable_bitmaps=usable))[:2] == (
        BackupType.FULL,
        VolumeReason.NEW_VOLUME,
    )


def test_a_volume_that_moved_to_another_target_is_still_the_same_volume() -> None:
    moved = vm(volume(ROOT, target="sda"), volume(DATA, target="vdz"))
    assert plan_of_data(incremental_state(vm=moved))[0] is BackupType.INCREMENTAL


def test_swapped_targets_keep_each_volume_on_its_own_parent() -> None:
    swapped = vm(volume(DATA, target="vda"), volume(ROOT, target="vdb"))
    backing = {plan.source: plan.backing for plan in decide(incremental_state(vm=swapped)).volumes}
    assert backing == {
        DATA: "../2026.01.31.22.00.05/datadisk.DATA-2.qcow2",
        ROOT: "../2026.01.31.22.00.05/root.ROOT-1.qcow2",
    }


@pytest.mark.parametrize("size", [GIB + 512, GIB - 512])
def test_a_resized_volume_is_full_inside_the_incremental(size: int) -> None:
    resized = vm(volume(ROOT), volume(DATA, target="vdb", virtual_size=size))
    assert plan_of_data(incremental_state(vm=resized)) == (BackupType.FULL, VolumeReason.RESIZED, None)


@pytest.mark.parametrize("usable", [{ROOT: True, DATA: False}, {ROOT: True}])
def test_a_volume_without_a_usable_bitmap_is_full_inside_the_incremental(usable: dict[str, bool]) -> None:
    assert plan_of_data(incremental_state(usable_bitmaps=usable)) == (
        BackupType.FULL,
        VolumeReason.BITMAP_UNUSABLE,
        None,
    )


@pytest.mark.parametrize(
    "without_bitmap",
    [
        volume(DATA, target="vdb", format="raw"),
        volume(DATA, target="vdb", format="raw", virtual_size=2 * GIB),
        volume("rbd://ceph:6789/pool/image", target="vdb"),
    ],
    ids=["raw", "raw and resized", "over the network"],
)
def test_a_volume_that_can_have_no_bitmap_is_full_whatever_is_said_of_it(without_bitmap: Volume) -> None:
    state = incremental_state(
        vm=vm(volume(ROOT), without_bitmap), usable_bitmaps={ROOT: True, without_bitmap.source: True}
    )
    assert plan_of_data(state) == (BackupType.FULL, VolumeReason.NO_BITMAP_POSSIBLE, None)


def test_a_full_layer_inside_the_parent_can_be_built_upon() -> None:
    parent = past_backup(
        past_volume(ROOT, type=BackupType.INCREMENTAL), past_volume(DATA, type=BackupType.FULL), chain_position=1
    )
    assert plan_of_data(incremental_state(latest=parent))[0] is BackupType.INCREMENTAL


def test_mixed_volumes_are_each_named_with_their_reason() -> None:
    mixed = vm(
        volume(ROOT),
        volume(DATA, target="vdb", virtual_size=2 * GIB),
        volume("/images/NEW-3.qcow2", target="vdc"),
        volume("/images/RAW-4.img", target="vdd", format="raw"),
    )
    latest = past_backup(past_volume(ROOT), past_volume(DATA), past_volume("/images/RAW-4.img"))
    decision = decide(incremental_state(vm=mixed, latest=latest, usable_bitmaps=dict.fromkeys((ROOT, DATA), True)))
    assert [plan.reason for plan in decision.volumes] == [
        VolumeReason.INCREMENTAL,
        VolumeReason.RESIZED,
        VolumeReason.NEW_VOLUME,
        VolumeReason.NO_BITMAP_POSSIBLE,
    ]
    assert decision.explanation.endswith(
        "full inside it: DATA-2: resized, NEW-3: new_volume, RAW-4: no_bitmap_possible"
    )


def test_row_9_says_of_each_volume_why_it_cannot() -> None:
    state = incremental_state(vm=vm(volume(ROOT, virtual_size=1), volume(DATA, target="vdb")), usable_bitmaps={})
    decision = decide(state)
    assert (decision.type, decision.reason) == (BackupType.FULL, Reason.BITMAP_UNUSABLE)
    assert "ROOT-1: resized, DATA-2: bitmap_unusable" in decision.explanation


def test_a_name_that_is_no_directory_name_is_compared_as_it_is_written() -> None:
    strange = replace(incremental_state().vm, name="a/b %")
    latest = past_backup(external_id=f"{layout.safe_component('a/b %')}/2026.01.31.22.00.05")
    assert decide(incremental_state(vm=strange, latest=latest)).reason is Reason.INCREMENTAL
    assert decide(incremental_state(vm=strange)).explanation == (
        "full: the VM is called a/b % now, and its chain lies below i-2-1234-VM"
    )


def test_a_vm_with_raw_disks_only_gets_no_checkpoint() -> None:
    raw_only = vm(volume(ROOT, format="raw"))
    decision = decide(incremental_state(vm=raw_only, active_checkpoint=None))
    assert (decision.checkpoint, decision.chain_id) == (None, NEW_CHAIN)


def test_one_disk_that_can_have_a_bitmap_is_enough_for_a_checkpoint() -> None:
    one = vm(volume(ROOT, format="raw"), volume(DATA, target="vdb"))
    assert decide(incremental_state(vm=one, active_checkpoint=None)).checkpoint == NEW_CHECKPOINT


def test_files_are_named_by_role_and_volume_and_backed_by_the_parents_file() -> None:
    root, data = decide(incremental_state()).volumes
    assert (root.file, data.file) == ("root.ROOT-1.qcow2", "datadisk.DATA-2.qcow2")
    assert root.backing == "../2026.01.31.22.00.05/root.ROOT-1.qcow2"
    assert data.backing == "../2026.01.31.22.00.05/datadisk.DATA-2.qcow2"


def test_the_backing_reference_is_the_file_that_the_parent_really_has() -> None:
    parent = past_backup(past_volume(ROOT, file="datadisk.other-name.qcow2"), past_volume(DATA))
    assert decide(incremental_state(latest=parent)).volumes[0].backing == (
        "../2026.01.31.22.00.05/datadisk.other-name.qcow2"
    )


def test_a_full_has_no_backing_at_all() -> None:
    assert [plan.backing for plan in decide(incremental_state(mode=Mode.FULL)).volumes] == [None, None]


# --- any state ------------------------------------------------------------------------------------------------

SOURCES = [ROOT, DATA, "/images/a b%.qcow2", "/other/ROOT-1.qcow2", "/dev/vg/lv.1", "rbd://h:1/pool/lv"]


@st.composite
def machines(draw: st.DrawFn) -> Vm:
    sources = draw(st.lists(st.sampled_from(SOURCES), min_size=1, unique=True))
    volumes = [
        volume(
            source,
            target=f"vd{'abcdef'[index]}",
            format=draw(st.sampled_from(["qcow2", "qcow2", "raw"])),
            virtual_size=draw(st.sampled_from([GIB, GIB + 512])),
        )
        for index, source in enumerate(sources)
    ]
    name = draw(st.sampled_from(["i-2-1234-VM", "i-2-1234-VM", "i-2-1234-VM", "renamed/VM"]))
    return vm(*volumes, name=name, state=draw(st.sampled_from(VmState)))


@st.composite
def states(draw: st.DrawFn) -> ChainState:
    checkpoints = st.sampled_from(["backup-1", "backup-1", "backup-0", None])
    parts = [past_volume(source) for source in draw(st.lists(st.sampled_from(SOURCES), min_size=1, unique=True))]
    latest = past_backup(*parts, checkpoint=draw(checkpoints), chain_position=draw(st.integers(0, 12)))
    return ChainState(
        vm=draw(machines()),
        mode=draw(st.sampled_from([Mode.AUTO, Mode.AUTO, Mode.AUTO, Mode.FULL])),
        settings=Settings(
            incremental_enabled=draw(st.sampled_from([True, True, True, False])),
            full_every=draw(st.integers(0, 14)),
            stopped_incremental_enabled=draw(st.booleans()),
        ),
        active_checkpoint=draw(checkpoints),
        latest=draw(st.sampled_from([latest, latest, latest, None])),
        usable_bitmaps=draw(st.dictionaries(st.sampled_from(SOURCES), st.booleans())),
    )


@given(state=states())
def test_every_decision_is_sound(state: ChainState) -> None:
    decision = decide(state)
    assert decision == decide(state), "the same state gives the same decision"
    assert decision.explanation
    assert [plan.source for plan in decision.volumes] == [each.source for each in state.vm.volumes]
    assert len({plan.file for plan in decision.volumes}) == len(decision.volumes)
    if decision.type is BackupType.FULL:
        assert decision.reason is not Reason.INCREMENTAL
        assert (decision.parent_id, decision.base_checkpoint, decision.chain_position) == (None, None, 0)
        assert {plan.type for plan in decision.volumes} == {BackupType.FULL}
        assert {plan.backing for plan in decision.volumes} == {None}
        return
    parent = state.latest
    assert parent is not None
    assert decision.reason is Reason.INCREMENTAL
    assert parent.external_id.startswith(f"{layout.safe_component(state.vm.name)}/"), "a chain lies in one directory"
    assert decision.parent_id == parent.backup_id
    assert decision.base_checkpoint == state.active_checkpoint == parent.checkpoint
    assert decision.checkpoint == NEW_CHECKPOINT
    assert decision.chain_id == parent.chain_id
    assert decision.chain_position == parent.chain_position + 1 < state.settings.full_every
    assert BackupType.INCREMENTAL in {plan.type for plan in decision.volumes}
    before = {each.source: each for each in parent.volumes}
    for plan in decision.volumes:
        assert (plan.type is BackupType.INCREMENTAL) == (plan.reason is VolumeReason.INCREMENTAL)
        assert (plan.backing is not None) == (plan.type is BackupType.INCREMENTAL)
        if plan.backing is not None:
            assert state.usable_bitmaps[plan.source]
            assert before[plan.source].virtual_size == plan.virtual_size
            assert plan.backing == f"../{parent.directory}/{before[plan.source].file}"


def test_the_documented_table_has_every_row_in_its_order() -> None:
    _, _, table = DOCUMENT.read_text().partition("| `reason` | when | backup |\n")
    rows = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert rows == [reason for reason in Reason if reason is not Reason.IMPORTED]
