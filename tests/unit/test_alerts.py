"""Alerts: opened once, told once, closed when it is over."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from nasbackup.sla import LOOK_EVERY
from nasbackup.sla.alerts import CALM, FORGOTTEN, Changes, Closing, Event, OpenAlert, Opening, changes, identity
from nasbackup.sla.channels import Channel
from nasbackup.sla.findings import Finding, Kind, Severity, Subject
from nasbackup.sla.messages import SHOWN, Notice, body, document, one_line, title

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
    MemoryBook,
    finding,
)

WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL


class InMemory(AlertMachine):
    make_book = MemoryBook


TestAlertsInMemory = InMemory.TestCase
TestAlertsInMemory.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def alert(found: Finding | None = None, **changes: Any) -> OpenAlert:
    told = {"told": frozenset({"mail"}), "opened_at": BEGIN, "confirmed_at": BEGIN}
    return OpenAlert(alert_id=7, finding=found or finding(), **{**told, **changes})


def look(
    open_alerts: Sequence[OpenAlert] = (),
    *findings: Finding,
    looked_at: Iterable[Subject] = EVERYTHING,
    ours: Iterable[Subject] = EVERYTHING,
    channels: Sequence[Channel] = CHANNELS,
    now: datetime = BEGIN + LOOK_EVERY,
) -> Changes:
    return changes(
        open_alerts,
        findings,
        looked_at={identity(subject) for subject in looked_at},
        ours={identity(subject) for subject in ours},
        channels=channels,
        scopes=SCOPES,
        now=now,
    )


def test_an_opening_is_told_to_the_channels_that_want_it() -> None:
    assert look((), finding()).opened == [Opening(finding=finding(), channels=("mail", "east_chat"))]
    west = finding(subject=WEST, severity=CRITICAL)
    assert look((), west).opened == [Opening(finding=west, channels=("mail", "pager"))]
    assert look((), finding(Kind.HOST_SILENT, HOST)).opened[0].channels == ("mail",), "a host is in no channel's zone"


def test_a_finding_that_stays_is_told_once() -> None:
    assert look([alert()], finding()) == Changes(confirmed=[7])
    (update,) = look([alert()], finding(text="The newest restorable backup is 28 hours old.")).updated
    assert (update.due, update.withdrawn) == ((), ()), "an age that grows is kept, not told"


def test_what_gets_worse_is_told_again_and_to_more() -> None:
    worse = finding(severity=CRITICAL)
    (update,) = look([alert()], worse).updated
    assert update.due == (("mail", Event.RAISED), ("east_chat", Event.OPENED), ("pager", Event.OPENED))
    (update,) = look([alert(told=frozenset(), waiting=frozenset({"mail"}))], worse, channels=[MAIL, PAGER]).updated
    assert update.due == (("pager", Event.OPENED),), "mail will hear of it as it is then"


def test_what_gets_better_is_told_to_those_who_know_and_no_one_new() -> None:
    (update,) = look([alert(finding(severity=CRITICAL), told=frozenset({"pager"}))], finding()).updated
    assert update.due == (("pager", Event.LOWERED),)
    waits = alert(finding(severity=CRITICAL), told=frozenset(), waiting=frozenset({"mail", "pager"}))
    (update,) = look([waits], finding()).updated
    assert (update.due, update.withdrawn) == ((), ("pager",)), "nobody is paged for what is only a warning by now"


def test_the_end_is_told_to_those_who_know() -> None:
    assert look([alert(waiting=frozenset({"pager"}))]).closed == [Closing(alert_id=7, channels=("mail",))]
    assert look([alert(told=frozenset(), waiting=frozenset({"mail"}))]).closed == [Closing(alert_id=7)]


def test_a_subject_that_nobody_could_look_at_keeps_its_alerts() -> None:
    assert look([alert()], looked_at=EVERYTHING - {EAST}) == Changes()
    assert look((), finding(), looked_at=()).opened, "what was found was found"


def test_what_nobody_looks_at_any_more_is_closed_after_a_week_and_not_said_to_be_over() -> None:
    """Its host went from fleet.yaml, or another fleet that shares the catalog looks at it (and confirms it)."""
    almost = BEGIN + FORGOTTEN - LOOK_EVERY
    assert look([alert()], looked_at=(), now=almost) == Changes()
    (closing,) = look([alert()], looked_at=(), now=BEGIN + FORGOTTEN).closed
    assert closing == Closing(alert_id=7, channels=("mail",), forgotten=True)
    (closing,) = look([alert()], now=BEGIN + FORGOTTEN).closed
    assert closing == Closing(alert_id=7, channels=("mail",)), "somebody has looked again, and it is over"


def test_a_channel_that_went_from_fleet_yaml_is_told_nothing_any_more() -> None:
    both = alert(told=frozenset({"mail", "pager"}))
    assert look([both], channels=[MAIL]).closed == [Closing(alert_id=7, channels=("mail",))]
    (update,) = look([both], finding(severity=CRITICAL), channels=[MAIL]).updated
    assert update.due == (("mail", Event.RAISED),)


def test_a_channel_of_another_fleet_is_told_of_what_both_look_at() -> None:
    theirs = alert(told=frozenset({"mail", "theirs"}), waiting=frozenset({"their_pager"}))
    assert look([theirs], ours=()).closed == [Closing(alert_id=7, channels=("mail", "theirs"))]
    (update,) = look([replace(theirs, finding=finding(severity=CRITICAL))], finding(), ours=()).updated
    assert update.due == (("mail", Event.LOWERED), ("theirs", Event.LOWERED))
    assert update.withdrawn == (), "whether it is for their pager is theirs to say"


def test_a_channel_that_is_new_is_not_told_of_what_was_open_before() -> None:
    assert look([alert()], finding(text="older by now"), channels=[MAIL, EAST_CHAT]).updated[0].due == ()


@pytest.mark.parametrize("pattern", list(itertools.product([True, False], repeat=6)))
def test_a_host_that_comes_and_goes_is_told_of_once(pattern: tuple[bool, ...]) -> None:
    """Every pattern of six looks: one opening, and an end only after fifteen minutes of silence about it."""
    book, events, last, silent = MemoryBook(), [], None, finding(Kind.HOST_SILENT, HOST)
    for number, is_silent in enumerate(pattern):
        now = BEGIN + LOOK_EVERY * number
        book.look([silent] if is_silent else [], EVERYTHING, CHANNELS, now)
        events += [heard.event for heard in book.deliver(MAIL, now, works=True)]
        last = now if is_silent else last
        assert bool(book.open_alerts()) == (last is not None and now - last < CALM[Kind.HOST_SILENT])
    assert events == [event for event, _ in itertools.groupby(events)]
    assert events.count(Event.OPENED) <= 2, "twice only when it was quiet for fifteen minutes between"


def test_a_repository_at_its_threshold_is_told_of_once() -> None:
    filling = finding(Kind.REPOSITORY_FILLING, severity=CRITICAL)
    critical = alert(filling)
    better = finding(Kind.REPOSITORY_FILLING)
    assert look([critical], better) == Changes(), "it stays critical for an hour"
    (update,) = look([critical], better, now=BEGIN + timedelta(hours=1)).updated
    assert update.due == (("mail", Event.LOWERED),)


def test_two_findings_of_one_name_are_one_alert() -> None:
    both = (finding(), finding(severity=CRITICAL, text="worse"), finding(text="and again"))
    (opening,) = look((), *both).opened
    assert opening.finding.text == "worse"


# --- messages -------------------------------------------------------------------------------------------------


def notice(number: int = 1, **changes: Any) -> Notice:
    found = {key: changes.pop(key) for key in ("severity", "subject", "text", "hint") if key in changes}
    facts = {"event": Event.OPENED, "opened_at": BEGIN, **changes}
    return Notice(delivery_id=number, alert_id=number, **vars(finding(**found)), **facts)


def test_one_alert_is_its_own_subject() -> None:
    assert title([notice(severity=CRITICAL)]) == (
        "[NAS backup] CRITICAL: i-2-1-VM: The newest restorable backup is 27 hours old."
    )
    assert title([notice(event=Event.CLOSED, closed_at=BEGIN)]).startswith("[NAS backup] OVER: i-2-1-VM")
    forgotten = notice(event=Event.CLOSED, closed_at=BEGIN, forgotten=True)
    assert title([forgotten]).startswith("[NAS backup] NO LONGER LOOKED AT: i-2-1-VM")
    assert "Nobody has looked for 7 days: is the host still in fleet.yaml? The last that was seen: The newest" in body(
        [forgotten], link=""
    )
    assert document([forgotten], link="")["alerts"][0]["forgotten"] is True
    assert title([notice(event=Event.RAISED, severity=CRITICAL)]).startswith("[NAS backup] now CRITICAL: ")
    assert title([notice(event=Event.LOWERED)]).startswith("[NAS backup] only WARNING: ")
    text = body([notice()], link="https://airflow.example.org/nasbackup")
    assert "What to do: Look at the VM's last runs." in text
    assert "stale, since 2026-01-31 22:00 UTC" in text
    assert text.endswith("\n\nhttps://airflow.example.org/nasbackup/alerts")


def test_a_storm_is_one_message_that_says_how_many() -> None:
    storm = [notice(number, severity=CRITICAL if number == 400 else WARNING) for number in range(1, 501)]
    storm += [notice(501, event=Event.CLOSED, closed_at=BEGIN)]
    assert title(storm) == "[NAS backup] 1 critical, 499 warning, 1 over"
    forgotten = [notice(502, event=Event.CLOSED, closed_at=BEGIN, forgotten=True)]
    assert title(storm[-2:] + forgotten) == "[NAS backup] 1 warning, 1 no longer looked at, 1 over"
    text = body(storm, link="")
    assert text.startswith("CRITICAL: "), "the worst first"
    assert text.count("What to do") == SHOWN
    assert text.endswith("… and 401 more: `nasbackup alerts` lists all that are open.")
    assert len(document(storm, link="")["alerts"]) == 501, "programs get all"


HOSTILE = "i-2\r\nBcc: all@example.org\x00\x1b[31m\u202egnp.\u2028<script>"


def test_a_hostile_name_stays_one_line() -> None:
    vm = finding(subject=EAST).subject
    bad = notice(subject=type(vm)(kind=vm.kind, key=vm.key, label=HOSTILE), text=HOSTILE, hint=HOSTILE)
    assert one_line(HOSTILE) == "i-2 Bcc: all@example.org [31m gnp. <script>"
    assert len(title([bad]).splitlines()) == 1
    assert len(title([notice(text="x" * 500)])) == 150
    assert len(body([bad], link="").splitlines()) == 3
    assert document([bad], link="")["alerts"][0]["label"] == HOSTILE, "JSON says it as it is"


def test_a_vm_has_a_link_of_its_own() -> None:
    alerts = document([notice(), notice(2, subject=HOST)], link="https://a.example.org/nasbackup")["alerts"]
    assert [entry["link"] for entry in alerts] == [
        f"https://a.example.org/nasbackup/vms/{EAST.key}",
        "https://a.example.org/nasbackup/alerts",
    ]
