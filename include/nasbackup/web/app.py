"""The page as an application that Airflow mounts. Every route asks the guard first, and none changes anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from nasbackup.catalog import Database
from nasbackup.errors import CatalogError, NasBackupError
from nasbackup.web import api, forms, measures, pages
from nasbackup.web.site import STATIC, Site, page_of

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_KEPT_BY_BROWSERS = "private, max-age=86400"  # the address of a static file changes with its content
_TITLES = {401: "Not logged in", 403: "Not allowed", 404: "Not found", 422: "Not understood", 503: "Not available"}


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Dependencies of FastAPI. ``view`` raises HTTPException 401 or 403 for who may not see the page; ``triggers``
    gives the ids of those of ``forms.TRIGGERED`` that the user may start.
    """

    view: Callable[..., Any]
    triggers: Callable[..., Any]


def create(*, database: Callable[[], Database], guards: Guards, login: str = "/api/v2/auth/login") -> FastAPI:
    """``login``: where a browser without a login is sent, below Airflow's own path."""
    app = FastAPI(title="NAS Backup", openapi_url=None)
    app.state.site = Site(database=database)
    app.state.login = login

    def remember(request: Request, allowed: frozenset[str] = Depends(guards.triggers)) -> None:
        request.state.nas_triggers = allowed

    for router in (pages.router, api.router, forms.router, measures.router, _static()):
        app.include_router(router, dependencies=[Depends(guards.view), Depends(remember)])
    app.middleware("http")(_with_headers)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(NasBackupError, _our_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _static() -> APIRouter:
    router = APIRouter(prefix="/static")
    files = StaticFiles(directory=STATIC)

    @router.get("/{path:path}")
    async def static(request: Request, path: str) -> Response:
        response = await files.get_response(path, request.scope)
        response.headers["Cache-Control"] = _KEPT_BY_BROWSERS
        return response

    return router


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


# --- what went wrong, in one sentence -------------------------------------------------------------------------


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException | StarletteHTTPException)
    not_logged_in = error.status_code == 401 or error.detail == "Invalid JWT token"
    if not_logged_in and _is_navigation(request):
        page = page_of(request)
        query = urlencode({"next": page.here()})
        return RedirectResponse(f"{page.airflow}{request.app.state.login}?{query}", status_code=307)
    return _say(request, status=error.status_code, sentence=str(error.detail), headers=error.headers)


def _not_understood(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = dict.fromkeys(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
    return _say(request, status=422, sentence=f"The address has a value that cannot be: {'; '.join(said)}.")


def _our_error(request: Request, error: Exception) -> Response:
    return _say(request, status=503 if isinstance(error, CatalogError) else 400, sentence=str(error))


def _unexpected(request: Request, error: Exception) -> Response:
    sentence = f"This view has failed ({type(error).__name__}): the api-server's log says where."
    return _say(request, status=500, sentence=sentence)


def _say(request: Request, *, status: int, sentence: str, headers: Any = None) -> Response:
    if _wants_html(request):
        title = _TITLES.get(status, "It did not work")
        response: Response = page_of(request).render("error.html", status=status, title=title, sentence=sentence)
    else:
        response = JSONResponse({"detail": sentence}, status_code=status)
    response.headers.update(headers or {})
    if status == 401 and "hx-request" in request.headers:
        response.headers["HX-Refresh"] = "true"  # the login ended while the page was open: load it anew
    return response


def _wants_html(request: Request) -> bool:
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return not path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def _is_navigation(request: Request) -> bool:
    return request.method == "GET" and _wants_html(request) and "hx-request" not in request.headers
