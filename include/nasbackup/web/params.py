"""What can be asked of a view, checked: a wrong parameter gets a sentence, not a guess."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import Depends, Query
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from nasbackup.catalog.pages.fleet import Sort, VmStatus, Wanted

MOST_PAGES = 100_000


class Order(StrEnum):
    ASC = "asc"
    DESC = "desc"


class Severity(StrEnum):
    ANY = ""
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, kw_only=True)
class Paging:
    """``page`` counts from 1."""

    page: int
    per: int

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.per

    def holding(self, place: int) -> Paging:
        """The page on which the row at this place (from 0) is."""
        return Paging(page=place // self.per + 1, per=self.per)

    def last(self, total: int) -> int:
        return max(1, -(-total // self.per))


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "No NUL character can be in it")
    return text


Word = Annotated[str, Query(max_length=200), AfterValidator(_without_nul)]
"""PostgreSQL has no text with a NUL in it: nothing of that name can be there."""


def _paging(
    page: Annotated[int, Query(ge=1, le=MOST_PAGES)] = 1, per: Annotated[int, Query(ge=1, le=200)] = 25
) -> Paging:
    return Paging(page=page, per=per)


Pages = Annotated[Paging, Depends(_paging)]
BackupId = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


def _wanted(
    paging: Pages,
    q: Word = "",
    status: Annotated[list[VmStatus] | None, Query()] = None,
    policy: Word = "",
    zone: Word = "",
    host: Word = "",
    sort: Sort = Sort.URGENCY,
    order: Order = Order.ASC,
) -> Wanted:
    return Wanted(
        search=q.strip(),
        statuses=tuple(status or ()),
        policy=policy,
        zone=zone,
        host=host,
        sort=sort,
        descending=order is Order.DESC,
        limit=paging.per,
        offset=paging.offset,
    )


WantedVms = Annotated[Wanted, Depends(_wanted)]


@dataclass(frozen=True, kw_only=True)
class Alerts:
    """Which alerts: those that are open, or the ``closed`` ones."""

    closed: bool
    severity: Severity
    search: str


def _alerts(closed: bool = False, severity: Severity = Severity.ANY, q: Word = "") -> Alerts:
    return Alerts(closed=closed, severity=severity, search=q.strip())


WantedAlerts = Annotated[Alerts, Depends(_alerts)]
