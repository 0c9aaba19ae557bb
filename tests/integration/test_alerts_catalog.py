"""Alerts in the catalog: what looks write, what is told, and what becomes of it when a channel or a process dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from nasbackup.catalog import Database, alerts, looks, vms
from nasbackup.errors import AlertNotDelivered, ChannelRefused
from nasbackup.sla import LOOK_EVERY
from nasbackup.sla.alerts import FORGOTTEN, Changes, Event, OpenAlert, Scope, identity
from nasbackup.sla.channels import Channel
from nasbackup.sla.findings import Finding, Severity, Subject, SubjectKind
from nasbackup.sla.messages import Notice
from nasbackup.steps.alerts import Delivered, deliver, settle

from tests.alert_book import (
    BEGIN,
    CHANNELS,
    EAST,
    EAST_CHAT,
    EVERYTHING,
    HOST,
    MAIL,
    PAGER,
    SCOPES,
    WEST,
    AlertMachine,
    Heard,
    finding,
)
from tests.integration.catalog_rows import together


def still_open(database: Database) -> list[OpenAlert]:
    with database.transaction() as cursor:
        return alerts.open_alerts(cursor)


class CatalogBook:
    def __init__(self, database: Database) -> None:
        self.database = database
        with database.transaction() as cursor:
            cursor.execute("TRUNCATE alert CASCADE")

    def look(
        self, findings: Sequence[Finding], looked_at: Iterable[Subject], channels: Sequence[Channel], now: datetime
    ) -> Changes:
        return settle(self.database, findings=findings, looked_at=looked_at, channels=channels, now=now, scopes=SCOPES)

    def open_alerts(self) -> list[OpenAlert]:
        return still_open(self.database)

    def deliver(self, channel: Channel, now: datetime, *, works: bool) -> list[Heard]:
        heard: list[Heard] = []

        def send(notices: Sequence[Notice]) -> None:
            if not works:
                raise ChannelRefused(problem="the mail server is away")
            heard.extend(Heard(n.alert_id, channel.name, n.event, n.severity) for n in notices)

        try:
            deliver(self.database, channel=channel, send=send, now=now)
        except AlertNotDelivered:
            assert not works
        return heard


def test_what_people_hear(database: Database) -> None:
    """The machine of the unit tests, with the book in PostgreSQL."""

    class InPostgres(AlertMachine):
        make_book = staticmethod(lambda: CatalogBook(database))

    quick = settings(max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(InPostgres, settings=quick)


def look(
    database: Database, *findings: Finding, now: datetime = BEGIN, channels: Sequence[Channel] = CHANNELS
) -> Changes:
    return settle(database, findings=findings, looked_at=EVERYTHING, channels=channels, now=now, scopes=SCOPES)


def told(database: Database, channel: Channel = MAIL, now: datetime = BEGIN) -> list[list[Notice]]:
    """The messages that go out now."""
    messages: list[list[Notice]] = []
    deliver(database, channel=channel, send=lambda notices: messages.append(list(notices)), now=now)
    return messages


def refuse(notices: Sequence[Notice]) -> None:
    raise ChannelRefused(problem="Connection refused")


def rows(database: Database) -> list[tuple[str, int, str | None, bool]]:
    with database.transaction() as cursor:
        cursor.execute("SELECT event, tries, error, delivered_at FROM alert_delivery ORDER BY delivery_id")
        return [(r["event"], r["tries"], r["error"], r["delivered_at"] is not None) for r in cursor.fetchall()]


def test_a_storm_is_one_mail_and_every_line_of_it_reaches_a_program(database: Database) -> None:
    """The scheduler was down: 10,000 VMs are stale in one look."""
    storm = [
        finding(
            subject=Subject(kind=SubjectKind.VM, key=f"vm-{number}", label=f"i-2-{number}-VM"),
            severity=Severity.CRITICAL,
        )
        for number in range(10_000)
    ]
    look(database, *storm)
    (mail,) = told(database)
    assert len(mail) == 10_000
    posts = told(database, PAGER)
    assert [len(post) for post in posts] == [500] * 20
    assert len({notice.alert_id for post in posts for notice in post}) == 10_000
    look(database, *storm, now=BEGIN + LOOK_EVERY)
    assert told(database) == told(database, PAGER) == []
    settle(
        database, findings=[], looked_at={one.subject for one in storm}, channels=CHANNELS, now=BEGIN + 2 * LOOK_EVERY
    )
    (mail,) = told(database)
    assert {notice.event for notice in mail} == {Event.CLOSED}
    assert len(mail) == 10_000


def test_what_a_channel_refused_is_told_when_it_works_again(database: Database) -> None:
    look(database, finding())
    for tries in (1, 2):
        with pytest.raises(
            AlertNotDelivered, match=r"Channel mail took no message \(Connection refused\).*: 1;.*smtp_ops"
        ):
            deliver(database, channel=MAIL, send=refuse, now=BEGIN)
        assert rows(database)[0] == ("opened", tries, "Connection refused", False)
    # It lasts for days: it is told however late, and as it is by then.
    later = BEGIN + timedelta(days=3)
    look(database, finding(severity=Severity.CRITICAL, text="worse"), now=later)
    ((notice,),) = told(database, now=later)
    assert (notice.event, notice.severity, notice.text, notice.opened_at) == (
        Event.OPENED,
        Severity.CRITICAL,
        "worse",
        BEGIN,
    )
    assert ("opened", 3, None, True) in rows(database)


def test_what_is_over_is_dropped_when_it_could_not_be_told_for_a_day(database: Database) -> None:
    look(database, finding(), channels=[MAIL])
    told(database)
    look(database, now=BEGIN + LOOK_EVERY, channels=[MAIL])
    with pytest.raises(AlertNotDelivered):
        deliver(database, channel=MAIL, send=refuse, now=BEGIN)
    look(database, now=BEGIN + timedelta(hours=24), channels=[MAIL])
    assert [row[0] for row in rows(database)] == ["opened", "closed"], "a day is not over yet"
    look(database, now=BEGIN + timedelta(hours=25), channels=[MAIL])
    assert [row[0] for row in rows(database)] == ["opened"]


def test_a_process_that_dies_while_it_tells_has_told_nothing(database: Database) -> None:
    look(database, finding())

    def dies(notices: Sequence[Notice]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(database, channel=MAIL, send=dies, now=BEGIN)
    assert rows(database)[0] == ("opened", 0, None, False)
    assert [len(message) for message in told(database)] == [1]


def test_two_that_deliver_at_once_tell_it_once_and_a_look_waits_for_them(database: Database) -> None:
    look(database, finding())
    sending, let_go, looked = threading.Event(), threading.Event(), threading.Event()
    messages: list[Sequence[Notice]] = []

    def slow(notices: Sequence[Notice]) -> None:
        messages.append(notices)
        sending.set()
        assert let_go.wait(30)

    def late_look() -> None:
        look(database, now=BEGIN + LOOK_EVERY)
        looked.set()

    first = threading.Thread(target=lambda: deliver(database, channel=MAIL, send=slow, now=BEGIN))
    first.start()
    assert sending.wait(30)
    assert deliver(database, channel=MAIL, send=refuse, now=BEGIN) == Delivered(channel="mail", busy=True)
    second = threading.Thread(target=late_look)
    second.start()
    with database.transaction() as cursor:  # the look has come to the lock, and stays there
        for _ in range(3000):
            cursor.execute(
                "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            row = cursor.fetchone()
            if row and row["n"]:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the look did not wait")
    assert not looked.is_set()
    let_go.set()
    first.join(30)
    second.join(30)
    messages += told(database)
    events = [notice.event for message in messages for notice in message]
    assert events == [Event.OPENED, Event.CLOSED], "who was being told of it when it ended is told that, too"


def test_two_looks_at_once_open_it_once(database: Database) -> None:
    done = together(*[lambda: look(database, finding()) for _ in range(6)])
    assert [type(result) for result in done] == [Changes] * 6
    assert sum(len(result.opened) for result in done if isinstance(result, Changes)) == 1
    assert [len(message) for message in told(database)] == [1]


def test_zone_and_policy_are_those_of_the_last_verdict(database: Database) -> None:
    with database.transaction() as cursor:
        vms.register(cursor, uuid=EAST.key, name=EAST.label, host="kvm_one")
        cursor.execute(
            "INSERT INTO sla_status (vm_id, policy, zone, status, checked_at) SELECT vm_id, 'gold', 'east', 'ok', now()"
            " FROM vm"
        )
        assert alerts.vm_scopes(cursor) == {identity(EAST): Scope(zone="east", policy="gold")}
    changed = settle(database, findings=[finding()], looked_at=EVERYTHING, channels=CHANNELS, now=BEGIN)
    assert changed.opened[0].channels == ("mail", "east_chat")


def test_a_vm_that_no_host_defines_any_more_has_no_alerts(database: Database) -> None:
    with database.transaction() as cursor:
        vms.register(cursor, uuid=EAST.key, name=EAST.label, host="kvm_one")
    look(database, finding())
    settle(database, findings=[], looked_at=(), channels=CHANNELS, now=BEGIN + LOOK_EVERY)
    assert len(still_open(database)) == 1, "nobody looked at it"
    with database.transaction() as cursor:
        cursor.execute("UPDATE vm SET defined = false")
    settle(database, findings=[], looked_at=(), channels=CHANNELS, now=BEGIN + 2 * LOOK_EVERY)
    assert still_open(database) == []


def waiting(database: Database) -> dict[str, int]:
    """Channel -> what waits for it, as the metric counts it."""
    with database.transaction() as cursor:
        cursor.execute("SELECT channel, count(*) FROM alert_delivery WHERE delivered_at IS NULL GROUP BY channel")
        return {row["channel"]: row["count"] for row in cursor.fetchall()}


def test_nothing_waits_for_a_channel_that_went_from_fleet_yaml(database: Database) -> None:
    """It was renamed: what waited for it in vain goes after a day, and its end is queued for nobody."""
    look(database, finding(), finding(subject=HOST), channels=[MAIL, PAGER, EAST_CHAT])
    assert [len(message) for message in told(database)] == [2]
    assert waiting(database) == {"east_chat": 1}
    look(database, finding(subject=HOST), channels=[MAIL, EAST_CHAT], now=BEGIN + LOOK_EVERY)
    assert waiting(database) == {"mail": 1}, "the end is told as ever"
    renamed = replace(MAIL, name="post")
    look(database, finding(subject=HOST), channels=[renamed], now=BEGIN + timedelta(hours=24))
    assert waiting(database) == {"mail": 1}, "this look may go by an older fleet.yaml"
    look(database, finding(subject=HOST), channels=[renamed], now=BEGIN + timedelta(hours=25))
    assert waiting(database) == {}
    look(database, channels=[renamed], now=BEGIN + timedelta(hours=26))
    assert (still_open(database), waiting(database)) == ([], {})


def test_what_came_here_from_another_fleets_host_is_told_to_those_who_know_of_it(database: Database) -> None:
    """A VM with an open alert migrates: its pager hears of the end."""
    for looked in (True, False):
        with database.transaction() as cursor:
            cursor.execute("TRUNCATE alert CASCADE; DELETE FROM sla_look")
            if looked:
                looks.note(cursor, hosts=["kvm_of_another_fleet"], now=BEGIN)
        settle(database, findings=[finding(severity=Severity.CRITICAL)], looked_at=[EAST], channels=[PAGER], now=BEGIN)
        told(database, PAGER)
        settle(database, findings=[], looked_at=[EAST, HOST], channels=[MAIL], now=BEGIN + LOOK_EVERY)
        assert still_open(database) == []
        assert waiting(database) == ({"pager": 1} if looked else {})


def test_nothing_waits_for_such_a_channel_of_a_vm_that_is_gone(database: Database) -> None:
    with database.transaction() as cursor:
        vms.register(cursor, uuid=EAST.key, name=EAST.label, host=HOST.key)
        vms.register(cursor, uuid=WEST.key, name=WEST.label, host="kvm_of_another_fleet")
    look(database, finding(), finding(subject=WEST), channels=[MAIL])
    told(database)
    with database.transaction() as cursor:
        cursor.execute("UPDATE vm SET defined = false")
    settle(database, findings=[], looked_at=[HOST], channels=[PAGER], now=BEGIN + LOOK_EVERY)
    assert still_open(database) == []
    ((notice,),) = told(database)
    assert notice.subject == WEST, "who was told of the other fleet's VM hears of its end"


def test_what_waits_for_another_fleets_channels_stays(database: Database) -> None:
    """Two fleets share the catalog and a repository; each look knows the channels of one."""
    store = Subject(kind=SubjectKind.REPOSITORY, key="nas_one", label="nas_one")
    with database.transaction() as cursor:
        for vm in (EAST, WEST):
            vms.register(cursor, uuid=vm.key, name=vm.label, host=f"kvm_of_{vm.label}")
        cursor.execute("INSERT INTO sla_status (vm_id, status, checked_at) SELECT vm_id, 'ok', now() FROM vm")

    def of_east(*findings: Finding) -> None:
        settle(database, findings=findings, looked_at=[EAST, store], channels=[MAIL], now=BEGIN)

    def of_west(*findings: Finding) -> None:
        settle(database, findings=findings, looked_at=[WEST, store], channels=[PAGER], now=BEGIN)

    full = finding(subject=store, severity=Severity.CRITICAL)
    of_west(finding(subject=WEST, severity=Severity.CRITICAL), full)
    of_east(finding(), full)
    of_west(finding(subject=WEST, severity=Severity.CRITICAL), full)
    assert waiting(database) == {"pager": 2, "mail": 1}
    told(database, PAGER)
    of_east()
    assert waiting(database) == {"pager": 1}, "the repository's end, for the pager that was told of its begin"


def test_what_nobody_looks_at_any_more_is_not_said_to_be_over(database: Database) -> None:
    look(database, finding())
    told(database)
    settle(database, findings=[], looked_at=[HOST], channels=CHANNELS, now=BEGIN + FORGOTTEN)
    ((notice,),) = told(database)
    assert (notice.event, notice.forgotten, notice.heading) == (Event.CLOSED, True, "NO LONGER LOOKED AT")
    look(database, finding(), now=BEGIN + FORGOTTEN)
    look(database, now=BEGIN + FORGOTTEN + LOOK_EVERY)
    told_again = [notice for message in told(database) for notice in message]
    assert [(notice.event, notice.forgotten) for notice in told_again] == []
    with database.transaction() as cursor:
        assert [row["forgotten"] for row in alerts.recent(cursor, also_closed=True, limit=10)] == [False, True]


def test_a_look_reads_no_alert_that_is_long_over(database: Database) -> None:
    """There are 400 days of them, and everybody who changes alerts waits meanwhile."""
    with database.transaction() as cursor:
        cursor.execute(
            """
            INSERT INTO vm (uuid, name, host, defined)
            SELECT gen_random_uuid(), 'i-2-' || n || '-VM', 'kvm_one', n % 10 > 0 FROM generate_series(1, 500) n;
            INSERT INTO alert (kind, subject_kind, subject, label, severity, text, hint, opened_at, updated_at,
                               confirmed_at, closed_at)
            SELECT 'stale', 'vm', gen_random_uuid(), '', 'warning', '', '', now(), now(), now(), now()
              FROM generate_series(1, 5000);
            ANALYZE alert, alert_delivery, vm
            """
        )
        alerts.vms_that_are_gone(cursor)
        cursor.execute(b"EXPLAIN " + cursor.query)
        plan = "\n".join(row["QUERY PLAN"] for row in cursor.fetchall())
    assert "on alert" in plan
    assert "Seq Scan on alert " not in plan, plan


def test_history_goes_after_a_year(database: Database) -> None:
    look(database, finding())
    look(database, now=BEGIN + LOOK_EVERY)
    look(database, finding(), now=BEGIN + timedelta(days=399))
    with database.transaction() as cursor:
        assert len(alerts.recent(cursor, also_closed=True, limit=10)) == 2
    look(database, finding(), now=BEGIN + timedelta(days=401))
    with database.transaction() as cursor:
        (row,) = alerts.recent(cursor, also_closed=True, limit=10)
    assert (row["opened_at"], row["closed_at"]) == (BEGIN + timedelta(days=399), None)
    assert row["undelivered"] == {"mail": None, "east_chat": None}
