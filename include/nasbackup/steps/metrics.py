"""Metrics for Prometheus: what the catalog knows of the fleet, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from nasbackup.catalog import Database, measurements
from nasbackup.sla.measured import Measurements
from nasbackup.sla.metrics import families

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def measure(database: Database, *, now: datetime, hosts: Sequence[str] | None = None) -> Measurements:
    """The fleet's numbers at one moment. ``hosts``: those of fleet.yaml, or None. Raises CatalogUnreachable."""
    with database.transaction() as cursor:
        return measurements.measure(cursor, now=now, hosts=hosts)


def render(database: Database, *, now: datetime, hosts: Sequence[str] | None = None, volumes: bool = True) -> bytes:
    """The text exposition, of ``CONTENT_TYPE``. ``volumes``: also the series per volume."""
    registry = CollectorRegistry()
    registry.register(_Once(families(measure(database, now=now, hosts=hosts), volumes=volumes)))
    return generate_latest(registry)


class _Once(Collector):
    """What was measured, for the one answer that is made of it. It describes nothing: it is asked once."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
