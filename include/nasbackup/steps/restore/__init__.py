"""A restore, in the order of the story: plan, each volume, commit; and ``give_back`` however it ended.

::

    plan ─▶ restore_volume[volume] ─▶ commit ─▶ give_back (always)

Nothing that exists is touched before ``commit``, which does its few renames as a whole or not at all. All that a retry,
or the next restore of the VM, must know is in the catalog's row of the restore. Each step may be killed anywhere.
"""

from nasbackup.steps.restore.bench import Bench
from nasbackup.steps.restore.commit import RestoreResult, commit, result_document
from nasbackup.steps.restore.plan import plan
from nasbackup.steps.restore.undo import give_back
from nasbackup.steps.restore.volume import restore_volume

__all__ = ["Bench", "RestoreResult", "commit", "give_back", "plan", "restore_volume", "result_document"]
