"""Pools are as large as fleet.yaml said last, or a person; the scheduler is never stopped, and waits for nobody."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from nasbackup.airflow import backup_tasks, pools
from nasbackup.errors import ParamInvalid
from nasbackup.fleet import ENVIRONMENT
from sqlalchemy import Engine, create_engine, event, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

FLEET = """
zones:
  east: {hosts: [kvm_one, kvm_two], repositories: [nas_main, nas_spare]}
  west: {hosts: [kvm.three], repositories: [nas_main]}
policies:
  gold: {vms: ["*-db"], zones: [east], schedule: "0 1 * * *"}
"""

EAST, WEST = "repositories: [nas_main, nas_spare]", "repositories: [nas_main]"


@pytest.fixture(params=["postgresql", "sqlite"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database with the table of pools as Airflow makes it."""
    from airflow.models.pool import Pool

    if request.param == "sqlite":
        engine = create_engine("sqlite://")
        Pool.__table__.create(engine)  # type: ignore[attr-defined]
        yield engine
        return
    directory, name = request.getfixturevalue("postgres_directory"), f"test_{uuid.uuid4().hex}"
    admin = psycopg2.connect(host=directory, user="postgres", dbname="postgres")
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} OWNER airflow")
    engine = create_engine(f"postgresql+psycopg2://airflow@/{name}?host={directory}")
    try:
        with engine.begin() as connection:  # a pool may belong to a team; nothing here has one
            connection.execute(text("CREATE TABLE team (name varchar(50) PRIMARY KEY)"))
        Pool.__table__.create(engine)  # type: ignore[attr-defined]
        yield engine
    finally:
        engine.dispose()
        with admin.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
        admin.close()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """As Airflow's: nothing is written but when it is told to."""
    with Session(engine, autoflush=False) as session:
        yield session


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write fleet.yaml, with these replacements."""
    file = tmp_path / "fleet.yaml"
    monkeypatch.setenv(ENVIRONMENT, str(file))

    def write(**replaced: str) -> None:
        content = FLEET
        for zone, more in replaced.items():
            repositories = EAST if zone == "east" else WEST
            content = content.replace(f"{repositories}}}", f"{repositories}, {more}}}")
        new = file.with_name("new")  # another file each time, as editors and deployments make it
        new.write_text(content)
        new.replace(file)

    write()
    return write


@pytest.fixture
def assign(fleet: Any, session: Session, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the hook makes of a task instance; returns its pool."""
    monkeypatch.setattr("sqlalchemy.orm.object_session", lambda _instance: session)

    def call(dag_id: str, task_id: str, conf: Any = None) -> str:
        instance = SimpleNamespace(dag_id=dag_id, task_id=task_id, pool="default_pool")
        pools.task_instance_mutation_hook(task_instance=instance, dag_run=SimpleNamespace(conf=conf))
        return instance.pool

    return call


GOLD = ("nas_backup_policy_gold", "kvm_one.back_up")


def made(session: Session) -> dict[str, tuple[int, bool]]:
    from airflow.models.pool import Pool

    session.expire_all()
    return {str(pool.pool): (pool.slots, pool.include_deferred) for pool in session.scalars(select(Pool))}


def by_hand(session: Session, name: str, **values: Any) -> None:
    """Under Admin → Pools."""
    from airflow.models.pool import Pool

    session.execute(update(Pool).where(Pool.pool == name).values(**values))


def test_what_moves_data_waits_for_its_repository(assign: Any, session: Session) -> None:
    assert assign("nas_backup", "copy", {"host": "kvm_one", "repository": "nas_spare"}) == "nas_repository_nas_spare"
    assert assign("nas_backup", "verify", {"host": "kvm_one", "repository": None}) == "nas_repository_nas_main"
    assert assign("nas_backup", "copy", {}) == "nas_repository_nas_main"
    assert assign("nas_backup", "record", {"host": "kvm_one"}) == "default_pool"
    assert made(session) == {"nas_repository_nas_spare": (8, False), "nas_repository_nas_main": (8, False)}


def test_where_vms_are_spread_the_zones_first_repository_stands_for_no_other(
    assign: Any, fleet: Any, session: Session
) -> None:
    """A run that names none would write a full to the first one, and the VM would stay there."""
    fleet(east="spread: true")
    assert assign("nas_backup", "copy", {"host": "kvm_one", "repository": None}) == "default_pool"
    assert made(session) == {}
    asked: dict[str, Any] = {"vm": "i-2-7-VM", "host": "kvm_one", "repository": None}
    with pytest.raises(ParamInvalid, match="zone east spreads its VMs over nas_main, nas_spare") as refused:
        backup_tasks.decide_chain(params=asked, conf=asked, run_id="manual")
    assert not refused.value.retryable
    assert assign("nas_backup", "copy", {"host": "kvm_one", "repository": "nas_spare"}) == "nas_repository_nas_spare"
    assert assign("nas_backup", "copy", {"host": "kvm.three"}) == "nas_repository_nas_main", "another zone"


def test_what_fleet_yaml_does_not_know_makes_no_pool(assign: Any, session: Session) -> None:
    assert assign("nas_backup", "copy", {"repository": "anything"}) == "default_pool"
    assert assign("nas_backup", "copy", {"host": "anywhere"}) == "default_pool"
    assert made(session) == {}


def test_who_begins_a_backup_holds_a_slot_of_its_host_while_it_waits(assign: Any, session: Session) -> None:
    assert assign("nas_backup_policy_silver", "kvm_three.back_up") == "nas_host_kvm.three"
    assert assign("nas_backup_policy_silver", "kvm_three.due") == "default_pool"
    assert assign("nas_backup_policy_silver", "gone.back_up") == "default_pool"
    assert made(session) == {"nas_host_kvm.three": (2, True)}


def test_a_change_of_fleet_yaml_resizes_the_pool_at_the_next_task(
    assign: Any, fleet: Any, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=pools.__name__)
    assign(*GOLD)
    fleet(east="host_slots: 5, repository_slots: 3")
    for _ in range(3):
        assert assign(*GOLD) == "nas_host_kvm_one"
    assert made(session) == {"nas_host_kvm_one": (5, True)}
    assert caplog.messages == ["Pool nas_host_kvm_one has 5 slots now, as fleet.yaml says; it had 2"]
    assign("nas_backup", "copy", {"host": "kvm_one"})
    fleet(east="repository_slots: 4")  # the line of host_slots is gone: its default counts again
    assign(*GOLD)
    assign("nas_backup", "copy", {"host": "kvm_one"})
    assert made(session) == {"nas_host_kvm_one": (2, True), "nas_repository_nas_main": (4, False)}


def test_a_night_that_has_begun_gets_the_new_number_too(assign: Any, fleet: Any, session: Session) -> None:
    """Who waits for a slot was made long ago; but each backup that begins makes tasks that name their host."""
    assign(*GOLD)
    fleet(east="host_slots: 1")
    assign("nas_backup", "copy", {"host": "kvm_two"})
    assert made(session)["nas_host_kvm_one"] == (2, True), "another host's backup says nothing of this one"
    assert "nas_host_kvm_two" not in made(session), "only a policy's tasks need the host's pool"
    assign("nas_backup", "copy", {"host": "kvm_one"})
    assert made(session)["nas_host_kvm_one"] == (1, True)


def test_what_a_person_sets_stays_until_fleet_yaml_says_another_number(
    assign: Any, fleet: Any, session: Session
) -> None:
    assign(*GOLD)
    by_hand(session, "nas_host_kvm_one", slots=7)
    assign(*GOLD)
    fleet(east="repository_slots: 3")
    assign(*GOLD)
    assert made(session) == {"nas_host_kvm_one": (7, True)}
    fleet(east="host_slots: 3")
    assign(*GOLD)
    assert made(session) == {"nas_host_kvm_one": (3, True)}


def test_a_pool_of_somebodys_own_making_is_left_alone(assign: Any, fleet: Any, session: Session) -> None:
    from airflow.models.pool import Pool

    session.add(Pool(pool="nas_host_kvm_one", slots=1, include_deferred=True, description="ours"))
    session.add(Pool(pool="nas_host_kvm_two", slots=1, include_deferred=True, description=None))
    session.flush()
    fleet(east="host_slots: 9")
    assert assign(*GOLD) == "nas_host_kvm_one"
    assert assign("nas_backup_policy_gold", "kvm_two.back_up") == "nas_host_kvm_two"
    assert made(session) == {"nas_host_kvm_one": (1, True), "nas_host_kvm_two": (1, True)}


def test_zones_that_share_a_repository_keep_the_smaller_of_their_numbers(
    assign: Any, fleet: Any, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=pools.__name__)
    fleet(east="repository_slots: 6", west="repository_slots: 2")
    for host in ("kvm_one", "kvm.three", "kvm_one"):
        assign("nas_backup", "copy", {"host": host})
    assert made(session) == {"nas_repository_nas_main": (2, False)}
    assert caplog.messages == [], "and the pool does not go to and fro"


def test_one_question_for_each_task(assign: Any, engine: Engine) -> None:
    assign(*GOLD)
    assign("nas_backup", "copy", {})
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    assign(*GOLD)
    assign("nas_backup", "copy", {})
    assert len(asked) == 2, asked


def test_nothing_is_committed_within_the_schedulers_transaction(assign: Any, fleet: Any, session: Session) -> None:
    from airflow.utils.sqlalchemy import prohibit_commit

    with prohibit_commit(session) as guard:
        assert assign(*GOLD) == "nas_host_kvm_one"
        fleet(east="host_slots: 5")
        assert assign(*GOLD) == "nas_host_kvm_one"
        guard.commit()
    assert made(session) == {"nas_host_kvm_one": (5, True)}


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_pool_that_somebody_has_locked_is_not_waited_for(
    assign: Any, fleet: Any, engine: Engine, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """A scheduler locks all pools while it hands out slots, and goes away again when one is locked."""
    from airflow.models.pool import Pool

    assign(*GOLD)
    session.commit()
    fleet(east="host_slots: 5")
    session.execute(text("SET lock_timeout = 1"))  # who waits fails, and does not hang
    with Session(engine) as other:
        other.scalars(select(Pool).with_for_update(nowait=True, key_share=True)).all()
        assert assign(*GOLD) == "nas_host_kvm_one"
        assert caplog.messages == []
        assert made(session) == {"nas_host_kvm_one": (2, True)}
    assign(*GOLD)
    assert made(session) == {"nas_host_kvm_one": (5, True)}
    with Session(engine) as other, pytest.raises(OperationalError, match="could not obtain lock"):
        other.scalars(select(Pool).with_for_update(nowait=True, key_share=True)).all()
    session.commit()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_change_that_fails_leaves_the_schedulers_transaction_usable(
    assign: Any, fleet: Any, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    assign(*GOLD)
    session.execute(text("ALTER TABLE slot_pool ADD CHECK (slots < 3)"))
    fleet(east="host_slots: 5")
    assert assign(*GOLD) == "nas_host_kvm_one"
    assert caplog.messages == ["Pool nas_host_kvm_one keeps its 2 slots"]
    session.execute(text("ALTER TABLE slot_pool ALTER slots SET NOT NULL"))
    session.commit()
    assert made(session) == {"nas_host_kvm_one": (2, True)}


def test_the_hook_never_stops_the_scheduler(assign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/nowhere.yaml")
    assert assign("nas_backup", "copy", {"host": "kvm_one"}) == "default_pool"
    instance = SimpleNamespace(dag_id="nas_backup", task_id="copy", pool="default_pool")
    pools.task_instance_mutation_hook(task_instance=instance, dag_run=None)
    assert instance.pool == "default_pool"


def test_other_dags_are_left_alone(assign: Any) -> None:
    assert assign("somebody_elses", "copy", {"host": "kvm_one"}) == "default_pool"
