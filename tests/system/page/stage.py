"""The browser, who sits before it, and the generated fleet that they see."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import md5
from pathlib import Path
from uuid import UUID

import httpx
from playwright.sync_api import Browser, FrameLocator, Page

from lab import browser as lab_browser
from lab import seed
from lab.airflow import Airflow
from lab.browser import Visit
from tests.system.conftest import Plant

PREFIX = f"i-7-{os.getpid()}-"
PLAN = seed.Plan(vms=150, each=42, now=datetime.now(UTC), prefix=PREFIX, host="kvm_test", repository="nas_test")
HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}"
SHOTS = Path(os.environ.get("NASBACKUP_STACK_DIR", "var/test")) / "screenshots"


def uuid_of(number: int) -> str:
    return str(UUID(md5(f"{PREFIX}{number}".encode(), usedforsecurity=False).hexdigest()))


@dataclass(kw_only=True)
class Stage:
    """The browser, and logins of a person who may do everything and one who may look."""

    browser: Browser
    plant: Plant
    url: str
    admin: str
    viewer: str
    stack: ExitStack

    def visit(self, *, as_: str = "admin", dark: bool = False, width: int = lab_browser.WIDE) -> Visit:
        token = {"admin": self.admin, "viewer": self.viewer}.get(as_)
        opened = lab_browser.visit(self.browser, url=self.url, token=token, dark=dark, width=width)
        return self.stack.enter_context(opened)


def token_of(user: str) -> str:
    airflow = Airflow.of_stack(user=user)
    answer = httpx.post(
        f"{airflow.url}/auth/token", json={"username": user, "password": airflow.password}, trust_env=False
    )
    return str(answer.raise_for_status().json()["access_token"])


def framed(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title='NAS Backup']")


def newest_of(plant: Plant, number: int) -> str:
    with plant.database.transaction() as cursor:
        cursor.execute(
            "SELECT external_id FROM backup JOIN vm USING (vm_id) WHERE uuid = %s AND status = 'BackedUp'"
            " ORDER BY begun DESC LIMIT 1",
            (uuid_of(number),),
        )
        return str(cursor.fetchall()[0]["external_id"])
