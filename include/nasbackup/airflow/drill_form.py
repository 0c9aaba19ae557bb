"""The params form of ``nas_restore_drill``."""

from __future__ import annotations

from airflow.sdk import Param

from nasbackup.airflow import params
from nasbackup.fleet import Fleet
from nasbackup.pick import Pick


def drill_params(fleet: Fleet) -> dict[str, Param]:
    """The form of ``nas_restore_drill``."""
    return {
        "backup": params.backup(empty="one is picked"),
        "pick": params.choice(
            Pick.NEVER_DRILLED,
            values_display={
                Pick.NEVER_DRILLED.value: "never-drilled: of the VM whose last drill is longest ago",
                Pick.OLDEST.value: "oldest: the oldest restorable backup",
                Pick.RANDOM.value: "random",
            },
            title="Pick",
            description="Which backup, when none is named.",
        ),
        "vms": params.vms(),
        "host": Param(
            None,
            type=["null", "string"],
            enum=[None, *fleet.hosts],
            title="Host",
            description="Where it boots (a Connection of type libvirt). Empty: where the VM was backed up.",
            section="More",
        ),
        "timeout": Param(
            600,
            type="integer",
            minimum=1,
            title="Timeout",
            description="Seconds that the guest may take.",
            section="More",
        ),
        "pattern": Param(
            None,
            type=["null", "string"],
            title="Pattern",
            description="What the serial console has to show (a regular expression). Empty: the guest agent has to "
            "answer, and of a VM without one the console has to show a login.",
            section="More",
        ),
        "sums": Param(
            None,
            type=["null", "string"],
            title="Checksums",
            description="Path of a file in the guest as sha256sum writes it: the files it names are compared.",
            section="More",
        ),
        "keep": Param(
            False,
            type="boolean",
            title="Keep",
            description="Let the VM run on for a look; `virsh destroy` ends it.",
            section="More",
        ),
    }
