"""A task that backs up a running VM is killed with SIGKILL in every gap between two effects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nasbackup.steps import Site

from tests.integration.crash.sweep import sweep

SCENES = [
    "decide_chain",
    "decide_chain after a run that died",
    "checkpoint",
    "copy",
    "verify",
    "record",
    "end_job",
    "end_job of a failed run",
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.replace(" ", "_"))
def test_sigkill_in_every_gap(scene: str, libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path) -> None:
    sweep(libvirt_connection, site=site, vm_name=vm_name, work=tmp_path, running=True, scene=scene)
