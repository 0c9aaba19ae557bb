"""Params forms of the DAGs, and the check of a run's conf against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param

from nasbackup.airflow import params
from nasbackup.errors import UnknownParam
from nasbackup.fleet import Fleet
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Quiesce

RATE = "^[1-9][0-9]{0,5} (KiB|MiB|GiB)/s$(?!\n)"


def backup_params(fleet: Fleet) -> dict[str, Param]:
    """The form of ``nas_backup``: hosts and repositories are those of fleet.yaml.

    Params without a section are open when the form appears, sections are folded.
    """
    return {
        "vm": Param(
            type="string",
            minLength=1,
            title="VM",
            description="Instance name of the libvirt domain, for example `i-2-1234-VM`.",
        ),
        "host": params.host(fleet),
        "repository": Param(
            None,
            type=["null", "string"],
            enum=[None, *fleet.repositories],
            title="Repository",
            description="Where the backup goes (a Connection of type nas). Empty: the first of the host's zone; a zone "
            "that spreads its VMs over several takes no empty one.",
        ),
        "mode": params.mode(),
        "quiesce": params.choice(
            Quiesce.OFF,
            values_display={
                Quiesce.OFF.value: "off: crash-consistent",
                Quiesce.CONTINUE.value: "freeze file systems; go on without when the guest cannot",
                Quiesce.FAIL.value: "freeze file systems; fail when the guest cannot",
            },
            title="Quiesce",
            description="Freeze the guest's file systems through its agent for the moment of the checkpoint.",
            section="More",
        ),
        "exclude_volumes": params.lines(
            title="Exclude volumes",
            description="volumes to leave out, by name, target (`vdb`) or source path.",
            section="More",
        ),
        "allow_encrypted": Param(
            False,
            type="boolean",
            title="Allow encrypted volumes",
            description="Back up LUKS-encrypted volumes too. What goes to the NAS is their plain content.",
            section="More",
        ),
        "compression": params.choice(
            Compression.NONE,
            title="Compression",
            description="Of the layers on the NAS: zstd is fast, zlib is read by every QEMU.",
            section="More",
        ),
        "bandwidth": Param(
            None,
            type=["null", "string"],
            pattern=RATE,
            title="Bandwidth",
            description="How fast each volume is read at most, for example `200 MiB/s`. Empty: no limit.",
            section="More",
        ),
        "verify": params.choice(
            VerifyLevel.FULL,
            values_display={
                VerifyLevel.FULL.value: "full: read every byte back from the NAS",
                VerifyLevel.STRUCTURE.value: "structure: do not read it back; recorded as not verified",
            },
            title="Verify",
            description="What has to hold before the backup is recorded.",
            section="More",
        ),
    }


def policy_params() -> dict[str, Param]:
    """The form of a policy's DAG."""
    return {
        "vms": params.vms(),
        "mode": params.mode(),
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run",
            description="Only list, in the logs of `due`, what would be backed up.",
        ),
        "ignore_blackout": Param(
            False,
            type="boolean",
            title="Ignore blackout windows",
            description="Begin now, whatever the policy's blackout says.",
        ),
    }


def reconcile_params() -> dict[str, Param]:
    """The form of ``nas_reconcile``."""
    return {"dry_run": params.dry_run()}


def retention_params() -> dict[str, Param]:
    """The form of ``nas_retention``."""
    return {
        "dry_run": params.dry_run(),
        "backups": Param(
            [],
            type="array",
            items={"type": "string", "pattern": params.EXTERNAL_ID},
            title="Backups",
            description="One a line: delete exactly these (external ids), whatever the policies say. "
            "Empty: what no policy keeps.",
        ),
        "vms": params.vms(section="More"),
        "rules": Param(
            None,
            type=["null", "object"],
            title="Rules",
            description='For this run in place of the policies\', for example `{"keep_daily": 7, "keep_weekly": 4}`.',
            section="More",
        ),
    }


def is_dry_run(context: Mapping[str, Any]) -> bool:
    """What the param ``dry_run`` says; empty: a manual run is one."""
    asked = context["params"]["dry_run"]
    return bool(context["dag_run"].run_type == "manual" if asked is None else asked)


def require_known_keys(conf: Mapping[str, Any] | None, *, form: Mapping[str, Param]) -> None:
    """Raises UnknownParam for a key of the run's conf that the form does not have.

    Airflow takes unknown keys in silence, and adds them to the context's ``params``; a typo must not become a default.
    """
    unknown = sorted(set(conf or {}) - set(form))
    if unknown:
        raise UnknownParam(keys=", ".join(map(repr, unknown)), known=", ".join(sorted(form)))
