"""The form of ``nas_restore``."""

from __future__ import annotations

from airflow.sdk import Param

from nasbackup.airflow import params
from nasbackup.fleet import Fleet
from nasbackup.model import Target

INSTANT = "instant"


def restore_params(fleet: Fleet) -> dict[str, Param]:
    """Params without a section are open when the form appears, sections are folded."""
    return {
        "backup": params.backup(empty="the VM's newest"),
        "vm": Param(
            None,
            type=["null", "string"],
            minLength=1,
            title="VM",
            description="In place of a backup: instance name of the VM whose newest backup is restored.",
        ),
        "before": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Before",
            description="With a VM: its newest backup from before this moment.",
        ),
        "target": Param(
            Target.IMAGE.value,
            type="string",
            enum=[*(target.value for target in Target), INSTANT],
            values_display={
                Target.IMAGE.value: "image: standalone image files",
                Target.NEW_VM.value: "new_vm: another VM, beside the old one",
                Target.IN_PLACE.value: "in_place: the VM, which is shut down, becomes what it was; asks first",
                Target.VOLUME.value: "volume: one volume as a new disk of a VM",
                INSTANT: "instant: another VM that runs from the backup within seconds, and is copied out of it",
            },
            title="Target",
            description="What the backup becomes.",
        ),
        "to": Param(
            None,
            type=["null", "string"],
            minLength=1,
            title="Directory",
            description="Absolute path of the directory on the host that gets the images; made when it does not exist. "
            "(Not in place.)",
        ),
        "volumes": params.lines(
            title="Volumes", description="names of the volumes to restore. Empty: all. (Target volume: exactly one.)"
        ),
        "host": params.host(fleet),
        "new_name": Param(
            None,
            type=["null", "string"],
            minLength=1,
            title="New name",
            description="Of the new VM. Empty: the old name, if no VM of the host has it any more.",
            section="New VM",
        ),
        "pool": Param(
            None,
            type=["null", "string"],
            minLength=1,
            title="Storage pool",
            description="In place of a directory: name of a libvirt pool of files.",
            section="New VM",
        ),
        "keep_macs": Param(
            False,
            type="boolean",
            title="Keep MACs",
            description="The new VM takes the old one's place on the network: the same MACs and ports.",
            section="New VM",
        ),
        "attach_to": Param(
            None,
            type=["null", "string"],
            minLength=1,
            title="Attach to",
            description="Target volume: the VM that gets the disk. Empty: the backup's own.",
            section="More",
        ),
        "format": Param(
            "qcow2",
            type="string",
            enum=["qcow2", "raw"],
            title="Format",
            description="Of new images. (In place, a volume keeps the format that it has.)",
            section="More",
        ),
        "start": Param(
            False,
            type="boolean",
            title="Start",
            description="Start the VM afterwards (new_vm, in_place).",
            section="More",
        ),
        "keep_old": Param(
            True,
            type="boolean",
            title="Keep old volumes",
            description="In place: keep the volumes that are replaced, as `<file>.before-<time>`.",
            section="More",
        ),
        "approved": Param(
            False,
            type="boolean",
            title="Approved",
            description="In place: nobody has to be asked (Browse → Required Actions) before volumes are replaced.",
            section="More",
        ),
    }
