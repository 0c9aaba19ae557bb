"""Proof beyond examples: whatever happens to a VM, in any order, its backups restore and the next one is right.

The short run makes the same few sequences each time. A long one makes new ones::

    NASBACKUP_STATEFUL_EXAMPLES=200 scripts/test tests/integration/stateful

Not among the rules: retention policies, restores through nas_restore, freezes, migration.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from nasbackup.catalog import Database

from tests.integration.stateful.machine import Machine
from tests.integration.stateful.world import world

LONG_RUN = int(os.environ.get("NASBACKUP_STATEFUL_EXAMPLES", "0"))
EXAMPLES = LONG_RUN or 3
SEED = 15  # of the short run; rules that it does not reach are for the long one
SECONDS_TO_SHRINK = 600


@pytest.mark.timeout(SECONDS_TO_SHRINK + 60 * EXAMPLES)
def test_any_sequence(libvirt_connection: Any, database: Database, vm_name: str, tmp_path: Path) -> None:
    numbers = count(1)

    def machine() -> Machine:
        return Machine(
            lambda: world(libvirt_connection, database=database, name=vm_name, work=tmp_path / str(next(numbers)))
        )

    run_state_machine_as_test(
        machine if LONG_RUN else seed(SEED)(machine),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=15,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
