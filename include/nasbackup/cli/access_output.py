"""What ``nasbackup mount | files | instant | drill`` print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

from nasbackup.cli.output import print_json, stdout
from nasbackup.model import Backup
from nasbackup.transfer.serve import Export


def show_served(backup: Backup, *, exports: Sequence[Export], until: datetime | None, as_json: bool) -> None:
    """Said while the command goes on: a reader of our output must not wait for its end."""
    if as_json:
        print_json(
            {
                "external_id": backup.external_id,
                "until": until.isoformat() if until else None,
                "volumes": [
                    {"name": export.name, "nbd": export.uri, "file": str(export.file) if export.file else None}
                    for export in exports
                ],
            }
        )
    else:
        for export in exports:
            _say(f"{export.name}  {export.uri}" + (f"  {export.file}" if export.file else ""))
        _say(f"Read-only, until {until:%Y-%m-%d %H:%M:%S} UTC or ctrl-C." if until else "Read-only, until ctrl-C.")
    sys.stdout.flush()


def _say(line: str) -> None:
    stdout().print(line, soft_wrap=True, markup=False, highlight=False)
