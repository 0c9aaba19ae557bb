"""What every view needs: the catalog, fleet.yaml, templates, and who is asking."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from nasbackup.catalog import Cursor, Database, looks
from nasbackup.catalog.pages import alerts, reading
from nasbackup.catalog.pages import now as catalog_now
from nasbackup.errors import FleetInvalid
from nasbackup.fleet import Fleet
from nasbackup.fleet.current import current
from nasbackup.sla import LOOK_EVERY
from nasbackup.web import words

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

LOOKS_MISSED = 3
"""When nas_sla_watch should have looked that often since its last look, what the page shows is old, and it says so."""


@dataclass(kw_only=True)
class Site:
    """One per process. ``database`` is asked for each view, so that a changed Connection counts at once."""

    database: Callable[[], Database]

    @cached_property
    def templates(self) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(
            size=words.size,
            speed=words.speed,
            span=words.span,
            time=words.time,
            percent=words.percent,
            number=words.number,
            days=words.days,
            ticks=_ticks,
        )
        environment.globals["version"] = self.version
        return environment

    @cached_property
    def version(self) -> str:
        """Of the static files: part of their addresses, so that a browser keeps no old ones."""
        digest = hashlib.sha256()
        for file in sorted(STATIC.rglob("*")):
            if file.is_file():
                digest.update(file.read_bytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Page:
    """One request. ``triggers``: ids of the DAGs that the user may start."""

    request: Request
    site: Site
    triggers: frozenset[str]

    @property
    def base(self) -> str:
        """The path that the page is mounted at, as the browser sees it."""
        return str(self.request.scope.get("root_path", ""))

    @property
    def airflow(self) -> str:
        """The path of Airflow's own UI."""
        return self.base.rpartition("/")[0]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Cursor]:
        with reading(self.site.database()) as cursor:
            yield cursor

    def fleet(self) -> tuple[Fleet | None, str]:
        """What all DAGs go by, and what is wrong with fleet.yaml.

        None: no valid one was ever read here, and the catalog is worth showing without.
        """
        try:
            standing = current()
        except FleetInvalid as error:
            return None, f"{error}."
        if not standing.problem:
            return standing.fleet, ""
        since = words.time(standing.written_at)
        return standing.fleet, f"{standing.problem}. Until it is right, the document of {since} UTC counts."

    def hosts(self) -> list[str] | None:
        """Those of fleet.yaml: each has to be looked at."""
        known, _ = self.fleet()
        return known.hosts if known else None

    def here(self, **changes: Any) -> str:
        """The address of this view with other parameters; what is empty is left out."""
        values = {key: self.request.query_params.getlist(key) for key in self.request.query_params}
        for key, value in changes.items():
            values[key] = value if isinstance(value, list) else [value]
        kept = [(key, value) for key, many in values.items() for value in many if value not in ("", None)]
        path = self.base + self.request.scope["path"].removeprefix(self.base)
        return f"{path}?{urlencode(kept)}" if kept else path

    def show(self, template: str, *, cursor: Cursor, view: str, **values: Any) -> HTMLResponse:
        """The view as HTML, with what all of them have: alerts that are open, and how old the last look is."""
        at, last = catalog_now(cursor), looks.last(cursor, hosts=self.hosts())
        _, problem = self.fleet()
        return self.render(
            template,
            view=view,
            now=at,
            looks=last,
            look_stale=is_stale(last.at, now=at),
            open_alerts=alerts.open_count(cursor),
            fleet_problem=problem,
            ago=lambda moment: words.age(moment, now=at),
            **values,
        )

    def render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        common: Mapping[str, Any] = {
            "base": self.base,
            "airflow": self.airflow,
            "here": self.here,
            "triggers": self.triggers,
        }
        return HTMLResponse(self.site.templates.get_template(template).render(**common, **values), status_code=status)


def _ticks(text: str) -> Markup:
    """What stands between `backticks` is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def is_stale(last_look: datetime | None, *, now: datetime) -> bool:
    return last_look is None or now - last_look > LOOKS_MISSED * LOOK_EVERY


def page_of(request: Request) -> Page:
    return Page(
        request=request, site=request.app.state.site, triggers=getattr(request.state, "nas_triggers", frozenset())
    )


Here = Annotated[Page, Depends(page_of)]
