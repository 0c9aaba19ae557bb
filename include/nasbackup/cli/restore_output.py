"""What ``nasbackup restore`` prints: plans and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nasbackup.cli.output import print_json, say
from nasbackup.restore.plan import RestorePlan
from nasbackup.steps.restore import RestoreResult, result_document
from nasbackup.words import size


def plan_document(plan: RestorePlan) -> dict[str, Any]:
    """A plan in JSON: the public form (docs/restore.md)."""
    return {
        "external_id": plan.backup,
        "target": plan.target.value,
        "vm": plan.vm,
        "vm_uuid": plan.vm_uuid,
        "volumes": [
            {
                "name": volume.name,
                "source": volume.source,
                "file": volume.path,
                "format": volume.format,
                "virtual_size": volume.virtual_size,
                "needs": volume.needs,
                "kept_as": volume.old if plan.keep_old else None,
            }
            for volume in plan.volumes
        ],
        "state": [{"kind": file.kind.value, "file": file.path} for file in plan.state],
        "space": [asdict(space) for space in plan.space],
        "notes": list(plan.notes),
    }


def show_plan(plan: RestorePlan, *, as_json: bool) -> None:
    if as_json:
        return print_json(plan_document(plan))
    say(f"Would restore {plan.backup} ({plan.target.value.replace('_', ' ')}), VM {plan.vm} ({plan.vm_uuid}):")
    for volume in plan.volumes:
        say(f"  {volume.name} -> {volume.path} ({volume.format}, up to {size(volume.needs)})")
        if volume.old is not None:
            say(f"    what is there now {f'is kept as {volume.old}' if plan.keep_old else 'is removed'}")
    for file in plan.state:
        say(f"  {file.kind.value} -> {file.path}")
        if file.old is not None:
            say(f"    what is there now {f'is kept as {file.old}' if plan.keep_old else 'is removed'}")
    for space in plan.space:
        say(f"  {space.path}: needs up to {size(space.needs)}, has {size(space.has)} free")
    _notes(plan.notes)
    say("Nothing was changed (dry run).")


def show_files(
    backup: str,
    *,
    paths: Mapping[str, Path],
    needs: Mapping[str, int],
    room: Sequence[tuple[Path, int, int]],
    as_json: bool,
) -> None:
    """The plan of a restore to images."""
    if as_json:
        return print_json(
            {
                "external_id": backup,
                "target": "image",
                "volumes": [{"name": name, "file": str(path), "needs": needs[name]} for name, path in paths.items()],
                "space": [{"path": str(path), "needs": sum_, "has": has} for path, sum_, has in room],
            }
        )
    for name, path in paths.items():
        say(f"{name} -> {path} (up to {size(needs[name])})")
    for path, sum_, has in room:
        say(f"{path}: needs up to {size(sum_)}, has {size(has)} free")
    say("Nothing was written (dry run).")


def show_result(result: RestoreResult, *, as_json: bool) -> None:
    if as_json:
        return print_json(result_document(result))
    say(f"VM {result.vm} ({result.vm_uuid}), from {result.backup}:")
    for name, path in result.volumes.items():
        where = f", disk {result.attached}" if result.attached else ""
        say(f"  {name} -> {path}{where}")
    for old in result.kept:
        say(f"  kept: {old}")
    _notes(result.notes)
    say("It was started." if result.started else "It was not started.")


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"  note: {note}")
