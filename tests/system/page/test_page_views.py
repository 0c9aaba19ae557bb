"""The page in a real browser, served by the test stack's api-server: what it shows.

Screenshots stay in var/test/screenshots.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from nasbackup.catalog import looks
from playwright.sync_api import expect

from lab import browser as lab_browser
from lab.browser import NARROW
from tests.system.page.stage import HOSTILE, PREFIX, SHOTS, Stage, newest_of, uuid_of

pytestmark = pytest.mark.system


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
    assert page.locator("svg.chain").get_by_role("listitem").get_by_role("link").count() == bars.count()
    first = bars.first.get_attribute("aria-label") or ""
    assert re.match(
        r"Full backup of 20\d\d-\d\d-\d\d \d\d:\d\d, \d+ GiB, read back and verified, restore drill failed", first
    )
    page.get_by_role("link", name="Show all chains").click()
    expect(page.locator("svg.chain a.leaving")).to_have_count(5)
    bars.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("tr:target")).to_contain_text("incremental")
    expect(page.locator("tr.marked")).to_have_count(1)
    oldest = page.locator("svg.chain [role=listitem] > a.bar").nth(22)
    oldest.focus()
    page.keyboard.press("Enter")
    expect(page.locator("tr:target.marked")).to_contain_text("full")
    expect(page.get_by_text("Page 2 of 2", exact=True)).to_be_visible()
    visit.go(f"/nasbackup/vms/{uuid_of(35)}")
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
    link = page.locator("h2 a")
    link.focus()
    with stage.plant.database.transaction() as cursor:
        cursor.execute(
            "UPDATE copy_progress SET done = total / 4 * 3, seconds = 110.5, reported_at = clock_timestamp()"
        )
    expect(row).to_contain_text("13.5 GiB of 18 GiB")
    expect(link).to_be_focused()
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


@pytest.mark.parametrize("view", ["fleet", "alerts"])
def test_the_keyboard_keeps_its_place_while_the_view_renews_itself(stage: Stage, view: str) -> None:
    visit = stage.visit()
    page = visit.go(f"/nasbackup/{'' if view == 'fleet' else view}?q={PREFIX}")
    link = page.locator(f"table.{view} tbody th a").nth(2)
    link.focus()
    page.evaluate("view => { document.getElementById(view).dataset.old = 1; }", view)
    renew = "view => { htmx.ajax('GET', location.href, { target: view, select: view, swap: 'outerHTML' }); }"
    page.evaluate(renew, f"#{view}")  # as its own timer does, in a minute
    expect(page.locator(f"#{view}[data-old]")).to_have_count(0)
    expect(link).to_be_focused()
    assert visit.problems == []


def test_a_page_whose_watch_has_stopped_says_so(stage: Stage) -> None:
    with stage.plant.database.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_test"], now=datetime.now(UTC) - timedelta(hours=3))
    visit = stage.visit()
    page = visit.go("/nasbackup/")
    expect(page.get_by_role("alert")).to_contain_text("nas_sla_watch has not looked since")
    visit.shoot(SHOTS / "watch-stopped.png")
    with stage.plant.database.transaction() as cursor:
        looks.note(cursor, hosts=["kvm_test"], now=datetime.now(UTC))
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
