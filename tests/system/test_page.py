"""The page in a real browser, served by the test stack's api-server: what it shows, to whom, and where it leads.

Its fleet is generated (lab.seed), under names of its own. Screenshots stay in var/test/screenshots.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import jwt
import pytest
from fastapi.routing import APIRoute
from nasbackup.web.app import Guards, create
from playwright.sync_api import Browser, FrameLocator, Page, expect

from lab import browser as lab_browser
from lab import seed
from lab.airflow import Airflow
from lab.browser import NARROW, Visit
from tests.system.conftest import Plant

pytestmark = pytest.mark.system

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


@pytest.fixture(scope="module")
def seeded(plant: Plant) -> Iterator[Plant]:
    stop_looking(plant.airflow)
    seed.fleet(plant.database, PLAN)
    with plant.database.transaction() as cursor:
        cursor.execute("UPDATE vm SET title = %s WHERE uuid = %s", (HOSTILE, uuid_of(41)))
    yield plant
    seed.remove(plant.database, prefix=PREFIX)
    with plant.database.transaction() as cursor:
        cursor.execute("DELETE FROM capacity_sample")
    pause_watch(plant.airflow, False)


def stop_looking(airflow: Airflow) -> None:
    """A look would judge the generated VMs by what the host defines. (A run of a paused DAG never ends.)"""
    while True:
        for run in looks(airflow):
            airflow.wait("nas_sla_watch", run["dag_run_id"], timeout=120)
        pause_watch(airflow, True)
        if not looks(airflow):
            return
        pause_watch(airflow, False)


def looks(airflow: Airflow) -> list[dict[str, Any]]:
    states = {"state": ["queued", "running"]}
    return list(airflow.request("GET", "/dags/nas_sla_watch/dagRuns", params=states)["dag_runs"])


def pause_watch(airflow: Airflow, paused: bool) -> None:
    airflow.request("PATCH", "/dags/nas_sla_watch", json={"is_paused": paused})


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with lab_browser.chromium() as browser:
        yield browser


@pytest.fixture
def stage(seeded: Plant, chromium: Browser) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(
            browser=chromium,
            plant=seeded,
            url=os.environ["NASBACKUP_AIRFLOW_API"],
            admin=token_of("admin"),
            viewer=token_of("viewer"),
            stack=stack,
        )


def framed(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title='NAS Backup']")


# --- who may see it -------------------------------------------------------------------------------------------


def routes() -> list[str]:
    """Every path of the application, with values in the place of parameters."""
    app = create(database=lambda: pytest.fail("not asked"), guards=Guards(view=lambda: None, triggers=lambda: None))
    paths = [route.path for route in app.routes if isinstance(route, APIRoute)]
    assert len(paths) == len(app.routes), "a mount or a plain route would not be guarded"
    return [path.replace("{uuid}", uuid_of(1)).replace("{path:path}", "page.css") for path in paths]


def test_without_a_login_every_route_is_refused(stage: Stage) -> None:
    refused = {path: httpx.get(f"{stage.url}/nasbackup{path}", trust_env=False).status_code for path in routes()}
    assert set(refused.values()) == {401}, refused
    assert len(refused) > 12


def test_with_a_login_that_has_no_rights_every_route_is_refused(stage: Stage) -> None:
    real = jwt.decode(stage.admin, options={"verify_signature": False})
    forged = jwt.encode(
        {**real, "sub": "nobody", "role": None},
        os.environ["AIRFLOW__API_AUTH__JWT_SECRET"],
        algorithm=jwt.get_unverified_header(stage.admin)["alg"],
    )
    headers = {"Authorization": f"Bearer {forged}"}
    answers = {path: httpx.get(f"{stage.url}/nasbackup{path}", headers=headers, trust_env=False) for path in routes()}
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 403)
    page = httpx.get(f"{stage.url}/nasbackup/", headers={**headers, "Accept": "text/html"}, trust_env=False)
    assert (page.status_code, "Not allowed" in page.text, PREFIX in page.text) == (403, True, False)


def test_a_viewer_may_look_and_nothing_else(stage: Stage) -> None:
    headers = {"Authorization": f"Bearer {stage.viewer}"}
    vm = uuid_of(5)
    with httpx.Client(base_url=stage.url, headers=headers, trust_env=False) as client:
        assert client.get("/nasbackup/api/fleet").status_code == 200
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert client.request(method, f"/nasbackup/vms/{vm}").status_code == 405
        conf = {"vm": f"{PREFIX}5-VM", "host": "kvm_test"}
        assert client.post("/api/v2/dags/nas_backup/dagRuns", json={"conf": conf, "logical_date": None}).is_error
    visit = stage.visit(as_="viewer")
    page = visit.go(f"/nasbackup/vms/{vm}")
    expect(page.get_by_role("heading", name=f"{PREFIX}5-VM")).to_be_visible()
    assert page.locator("a[href*='/forms/']").count() == 0
    expect(page.get_by_text("Back up now")).to_have_attribute("aria-disabled", "true")
    page = visit.go(f"/nasbackup/forms/backup?vm={vm}")
    expect(page.get_by_text("You may not trigger nas_backup.")).to_be_visible()
    assert page.locator("form").count() == 0
    assert visit.problems == []


def test_a_browser_without_a_login_is_sent_to_it_and_comes_back(stage: Stage) -> None:
    visit = stage.visit(as_="nobody")
    page = visit.go("/nasbackup/alerts?severity=critical")
    page.wait_for_url("**/auth/login?next=**")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    visit.shoot(SHOTS / "login-refused.png")
    passwords = json.loads(Path(os.environ["NASBACKUP_AIRFLOW_PASSWORDS"]).read_text())
    page.locator("input[name=username]").fill("viewer")
    page.locator("input[name=password]").fill(passwords["viewer"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/nasbackup/alerts?severity=critical")
    expect(page.get_by_role("table")).to_be_visible()


# --- what it shows --------------------------------------------------------------------------------------------


def test_the_fleet_is_searched_filtered_sorted_and_paged_by_the_server(stage: Stage) -> None:
    visit = stage.visit()
    page = visit.go(f"/nasbackup/?q={PREFIX}")
    rows = page.locator("table.fleet tbody tr")
    expect(rows).to_have_count(25)
    expect(rows.first.locator("td").first).to_contain_text("critical")
    expect(page.locator("#sort-urgency").locator("..")).to_have_attribute("aria-sort", "ascending")

    page.locator("#tile-unprotected").click()
    expect(rows).to_have_count(150 // 23)
    expect(page.locator("#tile-unprotected")).to_have_attribute("aria-current", "true")
    assert "status=unprotected" in page.url
    page.locator("#tile-all").click()
    expect(rows).to_have_count(25)

    page.locator("#sort-name").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#sort-name").locator("..")).to_have_attribute("aria-sort", "ascending")
    names = sorted(f"{PREFIX}{number}-VM" for number in range(1, 151))
    expect(rows.locator("th a").first).to_have_text(names[0])
    page.locator("#sort-name").click()
    expect(rows.locator("th a").first).to_have_text(names[-1])
    page.get_by_role("link", name="Next page").click()
    expect(rows.locator("th a").first).to_have_text(names[-26])
    expect(page.get_by_role("navigation").get_by_text("26\N{EN DASH}50 of 150 VMs")).to_be_visible()

    page.locator("#q").fill(f"{PREFIX}14")
    expect(rows).to_have_count(11)
    assert f"q={PREFIX}14" in page.url
    page.reload()
    expect(rows).to_have_count(11)
    page.locator("#filter-policy").select_option("gold")
    expect(rows).to_have_count(3)  # 140, 144, 148
    page.locator("#q").fill("100% _nothing")
    expect(page.get_by_text("No VM is like that.")).to_be_visible()
    assert visit.problems == []


def test_compliance_is_that_of_the_looks(stage: Stage) -> None:
    api = httpx.get(
        f"{stage.url}/nasbackup/api/compliance", headers={"Authorization": f"Bearer {stage.admin}"}, trust_env=False
    ).json()
    with stage.plant.database.transaction() as cursor:
        cursor.execute("SELECT sum(compliant)::float / sum(looks) AS share FROM sla_day WHERE policy = 'gold'")
        share = cursor.fetchall()[0]["share"]
    gold = next(policy for policy in api["policies"] if policy["name"] == "gold")
    assert gold["percent"] == pytest.approx(100 * share)
    assert gold["budget_left"] == pytest.approx(100 * (1 - (1 - share) / 0.01))
    visit = stage.visit()
    card = visit.go("/nasbackup/").locator(".policy", has_text="gold")
    expect(card).to_contain_text(f"{int(gold['budget_left'] + 0.5)} % left")


def test_a_vm_shows_its_chains_its_history_and_its_proof(stage: Stage) -> None:
    visit = stage.visit()
    page = visit.go(f"/nasbackup/vms/{uuid_of(35)}")  # the 35th was drilled, and the drill failed
    bars = page.locator("svg.chain a.bar")
    assert bars.count() == 2 + 3 * 10
    first = bars.first.get_attribute("aria-label") or ""
    assert re.match(
        r"Full backup of 20\d\d-\d\d-\d\d \d\d:\d\d, \d+ GiB, read back and verified, restore drill failed", first
    )
    page.get_by_role("link", name="Show all chains").click()
    expect(page.locator("svg.chain a.leaving")).to_have_count(5)
    bars.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("tr:target")).to_contain_text("incremental")
    expect(page.locator(".chart canvas")).to_have_count(4)
    expect(page.locator("table.backups tbody tr")).to_have_count(25)
    expect(page.locator("table.backups tbody tr").first).to_contain_text("generated")
    expect(page.get_by_text("no answer on the console within 10 minutes")).to_be_visible()
    assert visit.problems == []


def test_running_copies_move_without_a_reload(stage: Stage) -> None:
    visit = stage.visit()
    page = visit.go("/nasbackup/running")
    row = page.locator("tr", has_text="DATA")
    expect(row).to_contain_text("11 GiB of 18 GiB")
    expect(row).to_contain_text("117 MiB/s")
    expect(page.locator("tr", has_text="LOGS")).to_contain_text("waiting for its turn")
    with stage.plant.database.transaction() as cursor:
        cursor.execute(
            "UPDATE copy_progress SET done = total / 4 * 3, seconds = 110.5, reported_at = clock_timestamp()"
        )
    expect(row).to_contain_text("13.5 GiB of 18 GiB")
    expect(row).to_contain_text("37 s")
    visit.shoot(SHOTS / "running.png")
    assert visit.problems == []


def test_alerts_and_repositories(stage: Stage) -> None:
    visit = stage.visit()
    page = visit.go(f"/nasbackup/alerts?q={PREFIX}")
    rows = page.locator("table.alerts tbody tr")
    expect(rows.first).to_contain_text("critical")
    page.locator("#q").fill(f"{PREFIX}119-VM")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("ops: opened, delivered")
    page.get_by_role("link", name="History").click()
    page.locator("#q").fill(f"{PREFIX}32-VM")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("3 h")
    page = visit.go("/nasbackup/repositories")
    expect(page.get_by_role("heading", name="nas_test")).to_be_visible()
    ours = page.locator("section", has=page.get_by_role("heading", name="nas_test"))
    expect(ours.get_by_text("Full in")).to_be_visible()
    expect(ours.locator(".chart canvas")).to_have_count(1)
    assert visit.problems == []


def test_a_name_is_text_whatever_it_holds(stage: Stage) -> None:
    visit = stage.visit()
    page = visit.go("/nasbackup/?q=%3Cimg+src")
    expect(page.locator("table.fleet tbody tr")).to_have_count(1)
    expect(page.get_by_text(HOSTILE)).to_be_visible()
    visit.go(f"/nasbackup/vms/{uuid_of(41)}")
    expect(page.get_by_text(HOSTILE)).to_be_visible()
    assert page.locator("img").count() == 0
    assert visit.problems == []


def test_the_keyboard_alone_leads_everywhere(stage: Stage) -> None:
    visit = stage.visit()
    page = visit.go(f"/nasbackup/?q={PREFIX}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    seen = []
    for _ in range(200):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", seen[-1]
        if seen[-1] == "page-4":
            break
    assert seen.index("tile-critical") < seen.index("q") < seen.index("sort-size") < seen.index("page-3")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Page 2 of 6", exact=True)).to_be_visible()
    expect(page.locator("#page-3")).to_be_focused()
    expect(page.get_by_role("status")).to_contain_text("of 150 VMs")
    assert visit.problems == []


def test_a_page_whose_watch_has_stopped_says_so(stage: Stage) -> None:
    with stage.plant.database.transaction() as cursor:
        cursor.execute("SELECT max(checked_at) AS at FROM sla_status")
        at = cursor.fetchall()[0]["at"]
        cursor.execute("UPDATE sla_status SET checked_at = %s", (datetime.now(UTC) - timedelta(hours=3),))
    visit = stage.visit()
    page = visit.go("/nasbackup/")
    expect(page.get_by_role("alert")).to_contain_text("nas_sla_watch has not looked since")
    visit.shoot(SHOTS / "watch-stopped.png")
    with stage.plant.database.transaction() as cursor:
        cursor.execute("UPDATE sla_status SET checked_at = %s", (max(at, datetime.now(UTC)),))
    page.reload()
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [lab_browser.WIDE, NARROW])
def test_every_view_is_readable(stage: Stage, dark: bool, width: int) -> None:
    """Nothing is wider than the window, and text stands out from what it stands on."""
    visit = stage.visit(dark=dark, width=width)
    for name, path in {
        "fleet": f"/?q={PREFIX}",
        "vm": f"/vms/{uuid_of(35)}",
        "running": "/running",
        "repositories": "/repositories",
        "alerts": "/alerts",
        "form": f"/forms/backup?vm={uuid_of(5)}",
        "form-restore": f"/forms/restore?backup={newest_of(stage.plant, 5)}",
    }.items():
        page = visit.go(f"/nasbackup{path}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than {width}"
        visit.shoot(SHOTS / f"{name}-{'dark' if dark else 'light'}-{width}.png")
        faint = page.evaluate(CONTRAST)
        assert faint == [], f"{name}: {faint[:5]}"
    assert visit.problems == []


# Of every piece of text: WCAG's contrast with the nearest opaque background, at least 4.5.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
                           return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("svg, .u-wrap, .hidden, noscript, .off") || !element.checkVisibility()) continue;
    let behind = element, back = [0, 0, 0, 0];
    const of = (one) => rgba(getComputedStyle(one).backgroundColor);
    for (; behind && back[3] < 255; behind = behind.parentElement) back = of(behind);
    if (back[3] < 255) back = [255, 255, 255, 255];
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(`${element.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


# --- within Airflow -------------------------------------------------------------------------------------------


def test_in_airflows_navigation_and_in_its_theme(stage: Stage) -> None:
    visit = stage.visit()
    page = visit.go("/")
    page.get_by_role("link", name="NAS Backup").click()
    expect(framed(page).get_by_role("link", name="Fleet")).to_be_visible()
    html = framed(page).locator("html")
    expect(html).to_have_attribute("data-theme", "light")
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.reload()
    expect(html).to_have_attribute("data-theme", "dark")
    visit.shoot(SHOTS / "in-airflow-dark.png")


def test_a_prefilled_form_starts_a_run_and_links_lead_there_and_back(stage: Stage) -> None:
    """In the frame, all the way: form, run, the link of its task, the tab of the run, the VM."""
    visit = stage.visit()
    page = visit.go(f"/plugin/nas-backup/nasbackup/vms/{uuid_of(5)}")
    frame = framed(page)
    frame.get_by_role("link", name="Back up now").click()
    expect(frame.locator("#param-vm")).to_have_value(f"{PREFIX}5-VM")
    expect(frame.get_by_label("Host")).to_contain_text("kvm_test")
    frame.get_by_label("Mode").select_option(label="full: start a new chain")
    frame.get_by_role("button", name="Start the run").click()
    frame.get_by_role("link", name="Look at the run in Airflow").click()
    page.wait_for_url("**/dags/nas_backup/runs/manual__*")
    run_id = page.url.rpartition("/runs/")[2].partition("?")[0].partition("/")[0]
    run_id = httpx.URL(f"http://x/{run_id}").path.removeprefix("/")

    airflow = stage.plant.airflow
    assert airflow.wait("nas_backup", run_id) == "failed"
    conf = airflow.request("GET", f"/dags/nas_backup/dagRuns/{run_id}")["conf"]
    assert (conf["vm"], conf["host"], conf["mode"]) == (f"{PREFIX}5-VM", "kvm_test", "full")
    assert "has no VM named" in airflow.log("nas_backup", run_id, "decide_chain"), "the VM is a generated one"

    instances = f"/dags/nas_backup/dagRuns/{run_id}/taskInstances"
    links = [airflow.request("GET", f"{instances}/{task}/links") for task in ("decide_chain", "copy", "record")]
    (href,) = {link["extra_links"]["NAS Backup"] for link in links}
    page = visit.go(href)
    expect(framed(page).get_by_role("heading", name="No backup of this run")).to_be_visible()
    with stage.plant.database.transaction() as cursor:
        cursor.execute(
            "UPDATE backup SET run_id = %s WHERE backup_id = (SELECT max(backup_id) FROM backup JOIN vm USING (vm_id)"
            " WHERE uuid = %s) RETURNING external_id",
            (f"nas_backup/{run_id}", uuid_of(5)),
        )
        directory = cursor.fetchall()[0]["external_id"].rpartition("/")[2]
    page = visit.go(href)
    expect(framed(page).locator("tr.marked")).to_contain_text(directory)

    page = visit.go(f"/dags/nas_backup/runs/{run_id}")
    page.get_by_role("link", name="NAS Backup").last.click()
    page.wait_for_url("**/plugin/nas-backup-run*")
    expect(framed(page).locator("tr.marked")).to_contain_text(directory)
    visit.shoot(SHOTS / "run-tab.png")


def test_a_refused_form_says_why_and_starts_nothing(stage: Stage) -> None:
    visit = stage.visit()
    external_id = newest_of(stage.plant, 6)
    page = visit.go(f"/nasbackup/vms/{uuid_of(6)}")
    page.get_by_role("link", name="Restore the newest").click()
    expect(page.locator("#param-backup")).to_have_value(external_id)
    expect(page.locator("#param-host")).to_contain_text("kvm_test")
    page.locator("#param-backup").fill("no such id")
    before = runs(stage.plant.airflow)
    page.locator("#param-before").fill("2026-01-02T03:04")
    page.locator("#param-volumes").fill(" ROOT \n\nDATA")
    with page.expect_request("**/dags/nas_restore/dagRuns") as sent:
        page.get_by_role("button", name="Start the run").click()
    conf = sent.value.post_data_json["conf"]
    assert (conf["before"], conf["volumes"], conf["vm"]) == ("2026-01-02T03:04:00Z", ["ROOT", "DATA"], None)
    expect(page.get_by_role("alert")).to_contain_text("Not started.")
    assert runs(stage.plant.airflow) == before


def newest_of(plant: Plant, number: int) -> str:
    with plant.database.transaction() as cursor:
        cursor.execute(
            "SELECT external_id FROM backup JOIN vm USING (vm_id) WHERE uuid = %s AND status = 'BackedUp'"
            " ORDER BY begun DESC LIMIT 1",
            (uuid_of(number),),
        )
        return str(cursor.fetchall()[0]["external_id"])


def runs(airflow: Airflow) -> Any:
    return airflow.request("GET", "/dags/nas_restore/dagRuns")["total_entries"]
