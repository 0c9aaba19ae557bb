"""A VM's chains as a picture: one lane per chain, the newest above; a bar per backup, as high as it is large. Pure.

Only places and words: a template draws them, so that hostile names are escaped where all others are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nasbackup.model import BackupStatus, BackupType
from nasbackup.web import words

LANE = 146
COLUMN = 52
LEFT = 8
BAR = 34
TALLEST = 54
LOWEST = 7
BASE = 98
"""Of a lane, from its top: where bars stand. Marks and dates are below."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One backup, as far as it is drawn. ``drill``: ok, failed or None."""

    backup_id: int
    external_id: str
    type: BackupType
    status: BackupStatus
    chain_id: str | None
    chain_position: int
    parent_id: int | None
    created_at: datetime
    size: int | None
    verified: bool
    pinned: bool = False
    drill: str | None = None
    generated: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """``kind``: full, incremental; ``state``: good, leaving (delete-pending), running, failed."""

    link: Link
    kind: str
    state: str
    x: float
    y: float
    height: float
    label: str
    """The size, above the bar."""
    words: str
    """All of it in a sentence, for those who do not see the picture."""

    @property
    def middle(self) -> float:
        return self.x + BAR / 2


@dataclass(frozen=True, kw_only=True)
class Arc:
    """From a backup to the one that it is built on; ``bow``: over others that stand between them."""

    x1: float
    x2: float
    bow: bool


@dataclass(frozen=True, kw_only=True)
class Lane:
    y: float
    title: str
    bars: tuple[Bar, ...]
    arcs: tuple[Arc, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    width: float
    height: float
    lanes: tuple[Lane, ...]
    summary: str
    more: bool
    """There are chains that are not drawn."""
    base: float = BASE


def draw(links: Sequence[Link], *, most: int = 6) -> Picture:
    """The newest ``most`` chains of these backups. Backups outside every chain share a lane with nobody."""
    chains: dict[str, list[Link]] = {}
    for link in sorted(links, key=lambda link: (link.created_at, link.backup_id)):
        chains.setdefault(link.chain_id or f"alone {link.backup_id}", []).append(link)
    newest_first = sorted(chains.values(), key=lambda chain: chain[-1].created_at, reverse=True)[:most]
    largest = max((link.size or 0 for chain in newest_first for link in chain), default=0)
    lanes = tuple(_lane(chain, y=LANE * row, largest=largest) for row, chain in enumerate(newest_first))
    widest = max((len(chain) for chain in newest_first), default=0)
    count = sum(len(chain) for chain in newest_first)
    return Picture(
        width=max(LEFT * 2 + widest * COLUMN, 320),
        height=LANE * len(lanes) + 6,
        lanes=lanes,
        more=len(chains) > len(lanes),
        summary=f"{len(lanes)} chain{'s' if len(lanes) != 1 else ''} with {count} "
        f"backup{'s' if count != 1 else ''}, the newest chain first.",
    )


def _lane(chain: Sequence[Link], *, y: float, largest: int) -> Lane:
    ordered = sorted(chain, key=lambda link: (link.chain_position, link.created_at))
    column = {link.backup_id: index for index, link in enumerate(ordered)}
    bars = tuple(_bar(link, column=column[link.backup_id], largest=largest) for link in ordered)
    arcs = tuple(
        Arc(
            x1=_middle(column[link.backup_id]),
            x2=_middle(column[parent]),
            bow=column[link.backup_id] - column[parent] > 1,
        )
        for link in ordered
        if (parent := link.parent_id) is not None and parent in column
    )
    total = sum(link.size or 0 for link in ordered)
    title = f"Chain of {ordered[0].created_at:%Y-%m-%d}: {len(ordered)} backups, {words.size(total)}"
    return Lane(y=y, title=title.replace(": 1 backups", ": 1 backup"), bars=bars, arcs=arcs)


def _middle(column: int) -> float:
    return LEFT + column * COLUMN + BAR / 2


def _bar(link: Link, *, column: int, largest: int) -> Bar:
    share = math.sqrt((link.size or 0) / largest) if largest else 0
    height = max(LOWEST, TALLEST * share)
    return Bar(
        link=link,
        kind="full" if link.type is BackupType.FULL else "incremental",
        state=_state(link),
        x=LEFT + column * COLUMN,
        y=BASE - height,
        height=height,
        label=words.size(link.size).replace(" ", "\N{NO-BREAK SPACE}") if link.size is not None else "",
        words=", ".join(_sentence(link)),
    )


def _state(link: Link) -> str:
    if link.status in (BackupStatus.DELETE_PENDING, BackupStatus.DELETING):
        return "leaving"
    return {BackupStatus.BACKING_UP: "running", BackupStatus.FAILED: "failed"}.get(link.status, "good")


def _sentence(link: Link) -> list[str]:
    said = [
        f"{'Full' if link.type is BackupType.FULL else 'Incremental'} backup of {words.time(link.created_at)}",
        {
            "leaving": "delete-pending: it goes when nothing is built on it",
            "running": "being made",
            "failed": "failed",
            "good": words.size(link.size),
        }[_state(link)],
    ]
    if _state(link) in ("good", "leaving"):
        said.append("read back and verified" if link.verified else "not verified")
    if link.drill:
        said.append("restore drill passed" if link.drill == "ok" else "restore drill failed")
    if link.pinned:
        said.append("pinned")
    if link.generated:
        said.append("generated, not on any NAS")
    return said
