"""Restores to images: what is beside them stays, what was written is what was read, and where they may go."""

from __future__ import annotations

from pathlib import Path

import pytest
from nasbackup.errors import ParamInvalid, VerifyFailed
from nasbackup.model import Target
from nasbackup.restore.file_level import target_of
from nasbackup.restore.files import require_outside_backups
from nasbackup.restore.image import Located, locate, restore_images
from nasbackup.steps import Site
from nasbackup.transfer.pump import Progress

from tests.integration.restoring import dry_run, identical
from tests.integration.story import Story


def located(site: Site, external_id: str) -> Located:
    return locate(site.database, external_id=external_id)


def test_only_what_a_killed_restore_of_the_same_backup_left_is_removed(
    story: Story, site: Site, tmp_path: Path
) -> None:
    """Two VMs may have a volume of one name, and be restored to one directory at once."""
    first, second, to = story.backup(), story.backup(), tmp_path / "to"
    seen: list[Path] = []

    def look(what: str, _: Progress) -> None:
        if what == "restoring vda":
            seen.extend(to.glob("vda.qcow2.partial-*"))

    restore_images(located(site, first.external_id), to=to, volumes=["vda"], follow=look)
    left = seen[0].with_name(seen[0].name[:-12] + "0" * 12)
    left.write_bytes(b"as a killed one leaves it, or one that goes on")
    (to / "vda.qcow2").unlink()
    restore_images(located(site, second.external_id), to=to, volumes=["vda"])
    assert sorted(to.iterdir()) == [to / "vda.qcow2", left]
    (to / "vda.qcow2").unlink()
    restore_images(located(site, first.external_id), to=to, volumes=["vda"])
    assert list(to.iterdir()) == [to / "vda.qcow2"]
    assert identical(to / "vda.qcow2", story.frozen[first.external_id]["vda"])


def test_a_backup_is_no_place_for_an_image_and_one_that_is_not_what_was_read_gets_no_name(
    story: Story, site: Site, tmp_path: Path
) -> None:
    story.machine.guest_io("vda", "write -P 0x41 0 1M")
    backup, to, root = story.backup(), tmp_path / "to", Path(site.repository.path)
    inside = root / backup.external_id
    (tmp_path / "link").symlink_to(inside)
    partial = root / backup.vm / f".partial-{backup.directory}"
    for wrong in (inside, inside / "restored" / "here", tmp_path / "link", partial):
        with pytest.raises(ParamInvalid, match=r"it is inside the backup .* and would be deleted with it"):
            restore_images(located(site, backup.external_id), to=wrong)
        with pytest.raises(ParamInvalid, match="it is inside the backup"):
            dry_run(site, backup, Target.VOLUME, to=str(wrong), volumes=("vda",))
        with pytest.raises(ParamInvalid, match="it is inside the backup"):
            target_of("/etc/hosts", to=wrong)
    assert not (inside / "restored").exists()
    require_outside_backups(root / "restored")
    require_outside_backups(tmp_path / backup.directory)

    def flip(what: str, progress: Progress) -> None:
        if what == "restoring vda" and progress.done == progress.total:
            (partial,) = to.iterdir()
            with partial.open("r+b") as file:
                file.seek(4096)
                file.write(b"\x42")

    with pytest.raises(VerifyFailed, match="it is not what was read from the NAS"):
        restore_images(located(site, backup.external_id), to=to, image_format="raw", volumes=["vda"], follow=flip)
    assert list(to.iterdir()) == []
