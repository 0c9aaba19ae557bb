"""The page as a part of Airflow: who may see it, where it leads, and what its forms start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from fastapi.routing import APIRoute
from nasbackup.web.app import Guards, create
from playwright.sync_api import expect

from lab.airflow import Airflow
from tests.system.page.stage import PREFIX, SHOTS, Stage, framed, newest_of, uuid_of

pytestmark = pytest.mark.system

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
    page.locator("a[href*='/plugin/nas-backup-run']").click()  # the tab, not the navigation's link of the same name
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


def test_a_host_that_is_not_offered_is_not_replaced_by_another(stage: Stage) -> None:
    """A restore to the first host of the list would be one beside a VM of the same name."""
    visit = stage.visit()
    with stage.plant.database.transaction() as cursor:
        cursor.execute("UPDATE vm SET host = 'kvm_old' WHERE uuid = %s", (uuid_of(8),))
    page = visit.go(f"/nasbackup/forms/restore?backup={newest_of(stage.plant, 8)}")
    host = page.locator("#param-host")
    expect(host.locator("option:checked")).to_have_text("kvm_old is not in fleet.yaml: choose")
    expect(host).to_have_attribute("required", "")
    before = runs(stage.plant.airflow)
    page.get_by_role("button", name="Start the run").click()
    expect(host).to_be_focused()  # the browser says that one has to be chosen
    assert runs(stage.plant.airflow) == before
    host.select_option(label="kvm_test")
    assert host.evaluate("select => select.checkValidity()")
    assert visit.problems == []


def runs(airflow: Airflow) -> Any:
    return airflow.request("GET", "/dags/nas_restore/dagRuns")["total_entries"]
