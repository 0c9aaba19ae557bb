"""A restore is killed with SIGKILL in every gap between two effects of every step.

Whenever that is: the VM can start only with all of its old volumes or all of the new ones. Then the step is tried
again, or the run is given up, or nobody comes back and another restore of the VM finds what is left.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from nasbackup.catalog import leases, restores
from nasbackup.model import Backup, Target
from nasbackup.reconcile import act, observe, plan
from nasbackup.restore.plan import RestoreRequest
from nasbackup.steps import Site
from nasbackup.steps import restore as steps
from nasbackup.steps.restore.undo import clear

from lab import vm as lab
from tests.integration.crash.runner import Outcome, Runner
from tests.integration.restoring import assert_no_trace, bench_of, content
from tests.integration.story import Story, tool

Content = Mapping[str, bytes]
STEPS = ("plan", "restore_volume", "commit", "give_back")


@dataclass(kw_only=True)
class Scene:
    """A stopped VM that goes on changing, and one backup of it."""

    site: Site
    machine: lab.LabVm
    target: Target
    backup: Backup
    point: Content
    to: Path
    number: int = 0
    key: str = ""
    before: Content = field(default_factory=dict)
    disks: Mapping[str, Path] = field(default_factory=dict)

    @property
    def other(self) -> lab.LabVm:
        return lab.LabVm(connection=self.machine.connection, name=f"{self.machine.name}-new")

    def begin(self) -> None:
        """A round of its own: the VM has other content than in the backup, and in all rounds before."""
        self.number += 1
        self.key = uuid.uuid4().hex[:12]
        for image in self.disks.values():
            pattern = self.number % 250 + 2
            tool("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 64k 64k", str(image))
        self.before = self.content()
        assert self.before != self.point

    def content(self) -> Content:
        return {target: content(image) for target, image in self.disks.items()}

    def request(self, key: str) -> RestoreRequest:
        options: dict[str, Any] = {}
        if self.target is Target.NEW_VM:
            options = {"to": str(self.to), "new_name": self.other.name}
        elif self.target is Target.VOLUME:
            options = {"to": str(self.to), "volumes": ("vdb",)}
        return RestoreRequest(backup=self.backup.external_id, target=self.target, key=key, **options)

    def arguments(self, step: str, *, key: str = "", holder: str = "") -> list[dict[str, Any]]:
        """Of each call of the step: one per volume."""
        key = key or self.key
        bench = bench_of(self.site, holder=holder or f"run {key}")
        if step == "plan":
            return [{"bench": bench, "request": self.request(key)}]
        common = {"bench": bench, "backup": self.backup, "key": key}
        if step == "restore_volume":
            names = ["vdb"] if self.target is Target.VOLUME else ["vda", "vdb"]
            return [{**common, "volume": name} for name in names]
        return [common]

    def do(self, step: str, *, key: str = "") -> None:
        for arguments in self.arguments(step, key=key):
            getattr(steps, step)(**arguments)

    def go_on(self, step: str) -> None:
        for following in STEPS[STEPS.index(step) :]:
            self.do(following)

    # --- what must be so --------------------------------------------------------------------------------------

    def assert_startable_only_as_a_whole(self) -> None:
        """Right after the kill: nobody has tidied up yet."""
        if all(image.exists() for image in self.disks.values()):
            expected = (self.before, self.point) if self.target is Target.IN_PLACE else (self.before,)
            assert self.content() in expected, "a mixture that can start"
        else:
            assert self.target is Target.IN_PLACE

    def assert_done(self) -> None:
        if self.target is Target.IN_PLACE:
            assert self.content() == self.point
        else:
            assert self.content() == self.before
            owner = self.other if self.target is Target.NEW_VM else self.machine
            new = {target: image for target, image in owner.disks.items() if image.parent == self.to}
            names = ["vda", "vdb"] if self.target is Target.NEW_VM else ["vdb"]
            assert [content(image) for image in new.values()] == [self.point[name] for name in names]
        self.assert_tidy()

    def assert_undone(self) -> None:
        assert self.content() == self.before
        assert set(self.machine.disks) == set(self.disks)
        assert not self.to.exists() or list(self.to.iterdir()) == []
        self.assert_tidy()

    def assert_tidy(self) -> None:
        with self.site.database.transaction() as cursor:
            cursor.execute("DELETE FROM lease WHERE expires_at < clock_timestamp()")
        assert_no_trace(self.site, self.machine.directory, self.to)

    def clear(self) -> None:
        """As it was before the round."""
        self.other.remove()
        for target in set(self.machine.disks) - set(self.disks):
            disk = lab.disk_xml(target=target, path=self.machine.disks[target])
            self.machine.domain.detachDeviceFlags(disk, lab.libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        shutil.rmtree(self.to, ignore_errors=True)
        for path in self.machine.directory.iterdir():
            if ".before-" in path.name:
                path.unlink()


# --- what happens after the crash -----------------------------------------------------------------------------


def retried(scene: Scene, step: str, committed: bool) -> None:
    """Airflow tries the step again, with the same arguments, and goes on."""
    scene.go_on(step)
    scene.assert_done()


def given_up(scene: Scene, step: str, committed: bool) -> None:
    """Airflow has no tries left: the teardown runs."""
    scene.do("give_back")
    if committed:
        scene.assert_done()
    else:
        scene.assert_undone()


def abandoned(scene: Scene, step: str, committed: bool) -> None:
    """Nobody comes back; when the lease has expired, somebody restores the VM again."""
    expire_leases(scene.site)
    key = uuid.uuid4().hex[:12]
    if committed and scene.target is not Target.IN_PLACE:
        with scene.site.database.transaction() as cursor:  # the VM or the disk is there: there is nothing to do again
            leases.release_of(cursor, vm_uuid=scene.backup.vm_uuid, holder=f"run {scene.key}")
        bench = bench_of(scene.site, holder="the next")
        token = bench.lease(uuid=scene.backup.vm_uuid, vm=scene.backup.vm).join()
        clear(bench, vm_uuid=scene.backup.vm_uuid, token=token)
        bench.lease(uuid=scene.backup.vm_uuid, vm=scene.backup.vm).leave()
    else:
        for following in STEPS:
            scene.do(following, key=key)
    scene.assert_done()


def reconciled(scene: Scene, step: str, committed: bool) -> None:
    """Nobody comes back, and nas_reconcile finds what was cut off. (What was staged waits for the next restore.)"""
    expire_leases(scene.site)
    outcomes = act(scene.site, actions=plan(observe(scene.site)).to_do, holder="nas_reconcile/crash")
    assert [outcome for outcome in outcomes if not outcome.done] == []
    with scene.site.database.transaction() as cursor:
        left = restores.list_all(cursor)
    assert [row.state for row in left if row.state is not restores.RestoreState.STAGING] == []
    if left:
        scene.do("give_back")
    if committed:
        scene.assert_done()
    else:
        scene.assert_undone()


def expire_leases(site: Site) -> None:
    with site.database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 second'")


RECOVERIES: list[Callable[[Scene, str, bool], None]] = [retried, given_up, abandoned, reconciled]


# --- the suite ------------------------------------------------------------------------------------------------


@pytest.fixture
def make_scene(story: Story, site: Site) -> Iterator[Callable[[Target], Scene]]:
    made = []

    def make(target: Target) -> Scene:
        story.machine.guest_io("vda", "write -P 1 0 256k")
        story.machine.guest_io("vdb", "write -P 1 0 256k")
        story.backup()
        story.machine.guest_io("vda", "write -P 0x77 128k 64k")
        backup = story.backup()
        story.machine.destroy()
        disks = dict(story.machine.disks)
        point = {volume.target: story.frozen[backup.external_id][volume.name].read_bytes() for volume in backup.volumes}
        made.append(
            Scene(
                site=site,
                machine=story.machine,
                target=target,
                backup=backup,
                point=point,
                to=story.machine.directory / "new",
                disks=disks,
            )
        )
        return made[0]

    yield make
    for scene in made:
        scene.other.remove()


def is_committed(scene: Scene) -> bool:
    """The restore counts: by the catalog, or by what libvirt has."""
    with scene.site.database.transaction() as cursor:
        cursor.execute("SELECT state FROM restore WHERE key = %s", (scene.key,))
        row = cursor.fetchone()
    if row is not None and row["state"] == "done":
        return True
    if scene.target is Target.IN_PLACE:  # from here on the VM may have been started
        return all(image.exists() for image in scene.disks.values()) and scene.content() == scene.point
    if scene.target is Target.NEW_VM:
        return scene.other.name in [domain.name() for domain in scene.machine.connection.listAllDomains()]
    return scene.target is Target.VOLUME and len(scene.machine.disks) > len(scene.disks)


def wait_for_the_end_of(work: Path, directory: Path) -> None:
    """What the victim has started dies with it, a moment later."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = process.joinpath("cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if command[0].startswith((b"qemu-img", b"qemu-nbd", b"setpriv", b"sh")) and any(
                str(place).encode() in word for word in command for place in (work, directory)
            ):
                found.append(command)
        if not found:
            return
        time.sleep(0.01)
    raise AssertionError(found)


SCENES = [
    (Target.IN_PLACE, "plan"),
    (Target.IN_PLACE, "restore_volume"),
    (Target.IN_PLACE, "commit"),
    (Target.IN_PLACE, "give_back"),
    (Target.NEW_VM, "commit"),
    (Target.NEW_VM, "give_back"),
    (Target.VOLUME, "commit"),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("target", "step"), SCENES, ids=[f"{target}_{step}" for target, step in SCENES])
def test_sigkill_in_every_gap_of_a_restore(
    make_scene: Callable[[Target], Scene], target: Target, step: str, tmp_path: Path
) -> None:
    scene = make_scene(target)
    effects: list[str] = []
    with Runner(work=tmp_path) as runner:
        killed, kill_at = True, 0
        while killed:
            kill_at += 1
            scene.begin()
            for before in STEPS[: STEPS.index(step)]:
                scene.do(before)
            outcome = runner.run(getattr(steps, step), scene.arguments(step)[0], kill_at=kill_at)
            effects, killed = outcome.effects, outcome.killed
            wait_for_the_end_of(tmp_path, scene.machine.directory)
            recovery = RECOVERIES[kill_at % len(RECOVERIES)]
            try:
                assert killed or not outcome.error, outcome.error
                scene.assert_startable_only_as_a_whole()
                _recover(scene, step, recovery, outcome=outcome)
            except Exception as error:
                raise AssertionError(_report(outcome, kill_at, recovery=recovery.__name__)) from error
            scene.clear()
    assert effects, "a step without effects is one that the wrapper does not see"
    assert len(effects) == kill_at - 1, "each run of the step has the same effects: no gap was left out"
    print(f"{len(effects)} effects of {step} ({target}):", *effects, sep="\n")


def _recover(scene: Scene, step: str, recovery: Callable[..., None], *, outcome: Outcome) -> None:
    if step == "give_back":  # it was committed before: whoever comes only tidies up
        if outcome.killed:
            expire_leases(scene.site) if recovery is abandoned else None
            scene.do("give_back")
        scene.assert_done()
        return
    recovery(scene, step, is_committed(scene))


def _report(outcome: Outcome, number: int, *, recovery: str) -> str:
    lines = [f"{index:3} {effect}" for index, effect in enumerate(outcome.effects, start=1)]
    return "\n".join([f"killed after effect {number}, then {recovery}:", *lines])
