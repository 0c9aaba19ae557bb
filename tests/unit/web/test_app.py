"""The application around the views: guards, headers, and errors that are one sentence."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from nasbackup.catalog import Database
from nasbackup.errors import CatalogUnreachable
from nasbackup.web.app import Guards, create

UUID = "5b1f2c1e-0000-4000-8000-000000000001"
HTML = {"Accept": "text/html,application/xhtml+xml"}


def unreachable() -> Database:
    raise CatalogUnreachable(reason="connection refused")


class Door:
    """A guard that remembers whom it was asked about, and answers as it is told."""

    def __init__(self, status: int | None = None) -> None:
        self.status = status
        self.asked: list[str] = []

    def __call__(self) -> None:
        self.asked.append("")
        if self.status is not None:
            raise HTTPException(self.status, "Not authenticated" if self.status == 401 else "Forbidden")


def mounted(door: Door) -> tuple[TestClient, FastAPI]:
    def view() -> None:
        door()

    def triggers() -> frozenset[str]:
        return frozenset()

    app = create(database=unreachable, guards=Guards(view=view, triggers=triggers))
    root = FastAPI()
    root.mount("/somewhere/nasbackup", app)
    return TestClient(root, base_url="http://airflow.example", follow_redirects=False), app


def paths(app: FastAPI) -> list[str]:
    found = [route.path for route in app.routes if isinstance(route, APIRoute)]
    assert len(found) == len(app.routes), "a mount, or a page of documentation, is not guarded"
    return ["/somewhere/nasbackup" + path.replace("{uuid}", UUID).replace("{path:path}", "page.css") for path in found]


@pytest.mark.parametrize("status", [401, 403])
def test_no_route_answers_whom_the_guard_refuses(status: int) -> None:
    door = Door(status)
    client, app = mounted(door)
    for path in paths(app):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), path
    assert len(door.asked) == len(paths(app)) > 12


def test_every_route_only_reads() -> None:
    _, app = mounted(Door())
    assert {method for route in app.routes if isinstance(route, APIRoute) for method in route.methods} == {"GET"}


def test_a_browser_without_a_login_is_sent_there_and_back() -> None:
    client, _ = mounted(Door(401))
    answer = client.get("/somewhere/nasbackup/alerts?q=a%26b&closed=true", headers=HTML)
    assert answer.status_code == 307
    assert answer.headers["location"] == (
        "/somewhere/api/v2/auth/login?next=%2Fsomewhere%2Fnasbackup%2Falerts%3Fq%3Da%2526b%26closed%3Dtrue"
    )


def test_a_login_that_ends_while_the_page_is_open_loads_it_anew() -> None:
    client, _ = mounted(Door(401))
    answer = client.get("/somewhere/nasbackup/running", headers={**HTML, "HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/", 503, "The catalog does not answer: connection refused"),
        ("/vms/no-uuid", 422, "uuid: Input should be a valid UUID"),
        ("/?page=0", 422, "page: Input should be greater than or equal to 1"),
        ("/?sort=password", 422, "sort: Input should be"),
        ("/api/fleet?per=100000", 422, "per: Input should be less than or equal to 200"),
        ("/alerts?severity=any", 422, "severity: Input should be"),
        ("/vms/5b1f2c1e-0000-4000-8000-000000000001?backup=first", 422, "backup: Input should be a valid integer"),
        *(
            (path, 422, f"{path.partition('?')[2].partition('=')[0]}: No NUL character can be in it")
            for path in (
                *("/runs?run_id=%00", "/runs?dag_id=a%00&run_id=1", "/forms/restore?backup=%00"),
                *("/forms/drill?backup=a%00b", "/?q=%00", "/?policy=%00", "/?zone=%00", "/?host=a%00", "/alerts?q=%00"),
                *("/api/fleet?q=%00", "/api/alerts?q=%00"),
            )
        ),
        ("/static/%00.css", 404, "Not Found"),
        ("/nowhere", 404, "Not Found"),
        ("/static/../app.py", 404, "Not Found"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_as_a_page_and_as_json(path: str, status: int, sentence: str) -> None:
    client, _ = mounted(Door())
    for headers in (HTML, {"Accept": "application/json"}):
        answer = client.get(f"/somewhere/nasbackup{path}", headers=headers)
        assert answer.status_code == status
        assert sentence.split("&")[0] in answer.text
        as_page = headers is HTML and not path.startswith("/api/")
        assert answer.headers["content-type"].startswith("text/html" if as_page else "application/json")


def test_every_answer_forbids_what_the_page_does_not_need() -> None:
    client, app = mounted(Door())
    for path in [*paths(app), "/somewhere/nasbackup/nowhere"]:
        headers = client.get(path, headers=HTML).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';"), path
        assert not re.search(r"unsafe|\*|https?:", policy)
        assert "frame-ancestors 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "no-store" in headers["cache-control"] or "/static/" in path


def test_static_files_are_served_and_nothing_beside_them() -> None:
    client, _ = mounted(Door())
    assert client.get("/somewhere/nasbackup/static/vendor/htmx.min.js").status_code == 200
    for name in ("..%2Fapp.py", "%2e%2e/app.py", "vendor", "no-such.css"):
        answer: Any = client.get(f"/somewhere/nasbackup/static/{name}")
        assert answer.status_code == 404, name


def test_a_view_that_fails_says_so_and_where_to_look() -> None:
    def broken() -> Database:
        raise ZeroDivisionError

    app = create(database=broken, guards=Guards(view=lambda: None, triggers=lambda: frozenset()))
    client = TestClient(app, raise_server_exceptions=False)
    answer = client.get("/running", headers=HTML)
    assert (answer.status_code, "This view has failed (ZeroDivisionError)" in answer.text) == (500, True)
