"""The steps of one backup, in the order of the story: they join catalog, hypervisor, NAS and transfer.

::

    decide_chain -> checkpoint -> copy[volume] -> verify[volume] -> record
                        └──────────── end_job (always) ──────────────┘

Each step may be killed at any instruction and run again. What one step knows of another is a ``Ticket`` and
the catalog; nothing here knows Airflow.
"""

from nasbackup.steps.checkpoint import checkpoint
from nasbackup.steps.copy import copy
from nasbackup.steps.decide import decide_chain
from nasbackup.steps.end_job import end_job
from nasbackup.steps.record import record
from nasbackup.steps.ticket import BackupRequest, Site, Ticket
from nasbackup.steps.verify import verify

__all__ = [
    "BackupRequest",
    "Site",
    "Ticket",
    "checkpoint",
    "copy",
    "decide_chain",
    "end_job",
    "record",
    "verify",
]
