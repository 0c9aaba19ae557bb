"""A real browser for the page's tests: the distribution's Chromium, driven by Playwright. Nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
COOKIE = "_token"  # where Airflow keeps a login
WIDE, NARROW = 1366, 400


@dataclass(kw_only=True)
class Visit:
    """One reader's window, and all that went wrong in it: ``problems`` is empty after a good visit."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        host = urlsplit(self.url).netloc
        self.page.on(
            "request",
            lambda request: (
                self.problems.append(f"another host: {request.url}")
                if urlsplit(request.url).scheme in ("http", "https") and urlsplit(request.url).netloc != host
                else None
            ),
        )

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.url}{path}")
        return self.page

    def shoot(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=file, full_page=True)


@contextmanager
def chromium() -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    assert binary, "scripts/test installs chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, *, url: str, token: str | None = None, dark: bool = False, width: int = WIDE
) -> Iterator[Visit]:
    """A window without history. ``token``: of a login with Airflow."""
    context: BrowserContext = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", base_url=url
    )
    context.set_default_timeout(20_000)
    if token is not None:
        context.add_cookies([{"name": COOKIE, "value": token, "url": url}])
    made = Visit(page=context.new_page(), url=url)
    made.watch()
    try:
        yield made
    finally:
        context.close()
