"""The generated fleet (lab.seed), under names of its own, in the test stack; and a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from lab import browser as lab_browser
from lab import seed
from lab.airflow import Airflow
from tests.system.conftest import Plant
from tests.system.page.stage import HOSTILE, PLAN, PREFIX, Stage, token_of, uuid_of


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


@pytest.fixture(scope="module", autouse=True)
def patience() -> None:
    """A page that looks every 3 s is expected to show something in time, on a slow machine too."""
    expect.set_options(timeout=30_000)


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
