"""The picture of a VM's chains: every backup is there once, in its place, with all of it in words."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from nasbackup.model import BackupStatus, BackupType
from nasbackup.web import chain_picture
from nasbackup.web.chain_picture import Link, draw

START = datetime(2026, 11, 1, 22, tzinfo=UTC)


def chain(name: str, length: int, *, first_id: int = 1, days: int = 0) -> list[Link]:
    return [
        Link(
            backup_id=first_id + position,
            external_id=f"vm/{position}",
            type=BackupType.FULL if position == 0 else BackupType.INCREMENTAL,
            status=BackupStatus.BACKED_UP,
            chain_id=name,
            chain_position=position,
            parent_id=first_id + position - 1 if position else None,
            created_at=START + timedelta(days=days + position),
            size=(20 << 30) if position == 0 else (1 << 30),
            verified=True,
        )
        for position in range(length)
    ]


def test_the_newest_chain_is_above_and_its_full_stands_first() -> None:
    picture = draw([*chain("a", 3), *chain("b", 2, first_id=10, days=3)])
    assert [[bar.link.backup_id for bar in lane.bars] for lane in picture.lanes] == [[10, 11], [1, 2, 3]]
    assert [lane.y for lane in picture.lanes] == [0, chain_picture.LANE]
    assert picture.lanes[1].bars[0].kind == "full"
    assert picture.summary == "2 chains with 5 backups, the newest chain first."
    assert picture.lanes[0].title == "Chain of 2026-11-04: 2 backups, 21 GiB"


def test_each_incremental_hangs_on_its_parent() -> None:
    (lane,) = draw(chain("a", 4)).lanes
    middles = [bar.middle for bar in lane.bars]
    assert [(arc.x1, arc.x2, arc.bow) for arc in lane.arcs] == [
        (middles[1], middles[0], False),
        (middles[2], middles[1], False),
        (middles[3], middles[2], False),
    ]


def test_a_second_child_is_drawn_past_the_first() -> None:
    made = chain("a", 3)
    failed = replace(made[2], backup_id=9, status=BackupStatus.FAILED, created_at=START + timedelta(days=1, hours=1))
    (lane,) = draw([*made[:2], failed, made[2]]).lanes
    assert [bar.link.backup_id for bar in lane.bars] == [1, 2, 9, 3]
    assert [arc.bow for arc in lane.arcs] == [False, False, True]
    assert lane.bars[2].state == "failed"


def test_states_marks_and_words() -> None:
    full, pending, running = chain("a", 3)
    full = replace(full, status=BackupStatus.DELETE_PENDING, drill="ok")
    pending = replace(pending, verified=False, pinned=True, drill="failed", generated=True)
    running = replace(running, status=BackupStatus.BACKING_UP, size=None)
    (lane,) = draw([full, pending, running]).lanes
    assert [bar.state for bar in lane.bars] == ["leaving", "good", "running"]
    assert lane.bars[0].words == (
        "Full backup of 2026-11-01 22:00, delete-pending: it goes when nothing is built on it, "
        "read back and verified, restore drill passed"
    )
    assert lane.bars[1].words == (
        "Incremental backup of 2026-11-02 22:00, 1 GiB, not verified, restore drill failed, pinned, "
        "generated, not on any NAS"
    )
    assert lane.bars[2].words == "Incremental backup of 2026-11-03 22:00, being made"
    assert lane.bars[2].label == ""


def test_a_full_outside_every_chain_is_alone() -> None:
    first, second = (replace(link, chain_id=None, parent_id=None, chain_position=0) for link in chain("x", 2))
    assert [len(lane.bars) for lane in draw([first, second]).lanes] == [1, 1]


def test_only_so_many_chains_are_drawn_and_none_is_cut() -> None:
    made = [link for number in range(9) for link in chain(str(number), 2, first_id=number * 10, days=number * 2)]
    picture = draw(made, most=4)
    assert [len(lane.bars) for lane in picture.lanes] == [2, 2, 2, 2]
    assert (picture.more, draw(made, most=9).more) == (True, False)
    alone = [replace(link, chain_id=None, parent_id=None, chain_position=0) for link in chain("x", 5)]
    assert (draw(alone, most=4).more, draw(alone, most=5).more) == (True, False)


def test_nothing_is_an_empty_picture() -> None:
    picture = draw([])
    assert (picture.lanes, picture.summary) == ((), "0 chains with 0 backups, the newest chain first.")


@given(st.lists(st.integers(0, 1 << 42), min_size=1, max_size=30))
def test_bars_stand_on_the_line_within_their_lane_and_a_larger_one_is_not_lower(sizes: list[int]) -> None:
    made = [replace(link, size=size) for link, size in zip(chain("a", len(sizes)), sizes, strict=True)]
    picture = draw(made)
    (lane,) = picture.lanes
    assert len(lane.bars) == len(sizes)
    for bar in lane.bars:
        assert bar.y + bar.height == chain_picture.BASE
        assert 0 < bar.height <= chain_picture.TALLEST
        assert 0 <= bar.x < bar.x + chain_picture.BAR <= picture.width
    for one in lane.bars:
        for other in lane.bars:
            assert (one.link.size or 0) <= (other.link.size or 0) or one.height >= other.height
