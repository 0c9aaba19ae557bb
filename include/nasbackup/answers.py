"""How long a run waits for the answer of a person. Read while Airflow parses DAG files, so this module stays light."""

from __future__ import annotations

from datetime import timedelta

ANSWERED_WITHIN = timedelta(hours=24)
"""nas_restore asks before it replaces volumes; by then there is an answer, or the run has ended without one."""
