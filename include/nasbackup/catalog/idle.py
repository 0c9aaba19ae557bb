"""Connections between two transactions: opening one costs more than most transactions take.

Each process keeps its own. A connection that a fork has inherited is its parent's: it is neither used nor closed.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Mapping
from typing import Any

import psycopg2
import psycopg2.extensions

KEPT = 2
"""What one thread needs, and one more that reports progress. A process has to do with one catalog at a time."""

_lock = threading.Lock()
_idle: list[tuple[Mapping[str, Any], psycopg2.extensions.connection]] = []
"""The longest kept first."""
_inherited: list[psycopg2.extensions.connection] = []
"""By a forked process from its parent: kept from being collected, which could end them."""


def take(parameters: Mapping[str, Any]) -> psycopg2.extensions.connection:
    """One that is open, or a new one. Raises psycopg2.OperationalError when PostgreSQL does not answer."""
    while True:
        with _lock:
            kept = next((entry for entry in reversed(_idle) if entry[0] == parameters), None)
            if kept is not None:
                _idle.remove(kept)
        connection: psycopg2.extensions.connection = kept[1] if kept is not None else psycopg2.connect(**parameters)
        if kept is None or not _has_something_to_say(connection):
            return connection
        connection.close()


def give_back(parameters: Mapping[str, Any], connection: psycopg2.extensions.connection) -> None:
    """Keep it for the next one, unless it is broken; the one that was kept the longest makes room."""
    if connection.closed or connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_IDLE:
        connection.close()
        return
    with _lock:
        _idle.append((parameters, connection))
        surplus = [_idle.pop(0)[1] for _ in range(len(_idle) - KEPT)]
    for old in surplus:
        old.close()


def _has_something_to_say(connection: psycopg2.extensions.connection) -> bool:
    """Nobody has asked: it is the end, PostgreSQL was stopped or killed since. (Asking would cost a round trip.)"""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _forget_inherited() -> None:
    global _lock
    _lock = threading.Lock()  # a thread of the parent may have held it
    _inherited.extend(connection for _, connection in _idle)
    _idle.clear()


os.register_at_fork(after_in_child=_forget_inherited)
