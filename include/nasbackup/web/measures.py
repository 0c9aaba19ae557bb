"""The fleet's numbers for Prometheus, behind the same login as the page (docs/metrics.md)."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Response

from nasbackup.steps.metrics import CONTENT_TYPE, render
from nasbackup.web.site import Here

router = APIRouter()


@router.get("/metrics")
def metrics(page: Here, volumes: bool = True) -> Response:
    """Prometheus' text format. ``volumes=false`` leaves out what there is per volume."""
    text = render(page.site.database(), now=datetime.now(UTC), hosts=page.hosts(), volumes=volumes)
    return Response(text, media_type=CONTENT_TYPE)
