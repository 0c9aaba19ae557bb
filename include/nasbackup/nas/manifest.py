"""``manifest.json``: a backup described beside its files, so that the NAS alone suffices (invariant 6).

The format is published as a JSON schema (``schemas/manifest.schema.json``) and checked in both directions.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema

from nasbackup.errors import ManifestInvalid
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.layout import MANIFEST
from nasbackup.machine import SavedState
from nasbackup.model import Backup

VERSION = 1


def build(
    backup: Backup,
    *,
    repository_uuid: str,
    recorded_at: str,
    level: VerifyLevel = VerifyLevel.FULL,
    state: Sequence[SavedState] = (),
    state_missing: Sequence[str] = (),
) -> bytes:
    """The manifest of a backup that is about to be published. ``recorded_at`` is ISO 8601 with an offset.

    What is as it always was has no key: then versions that know no other take the manifest as well.
    """
    document: dict[str, Any] = {
        "version": VERSION,
        "external_id": backup.external_id,
        "vm": {"name": backup.vm, "uuid": backup.vm_uuid, "host": backup.host},
        "repository": {"name": backup.repository, "uuid": repository_uuid},
        "type": backup.type,
        "reason": backup.reason,
        "explanation": backup.explanation,
        "consistency": backup.consistency,
        "chain": {
            "id": backup.chain_id,
            "position": backup.chain_position,
            "parent": backup.parent,
        },
        "checkpoint": backup.checkpoint,
        "created": backup.created_at.isoformat(),
        "published": recorded_at,
        "volumes": [
            {
                "name": volume.name,
                "file": volume.file,
                "source": volume.source,
                "target": volume.target,
                "source_format": volume.format,
                "type": volume.type,
                "reason": volume.reason,
                "virtual_size": volume.virtual_size,
                "backing": volume.backing,
                "digest": volume.digest,
                "bytes_read": volume.bytes_read,
                "bytes_written": volume.bytes_written,
                **({} if volume.compression is Compression.NONE else {"compression": volume.compression}),
            }
            for volume in backup.volumes
        ],
    }
    if level is not VerifyLevel.FULL:
        document["verify"] = level
    if state:
        document["state"] = [asdict(entry) for entry in state]
    if state_missing:
        document["state_missing"] = list(state_missing)
    validate(document, path=Path(backup.external_id) / MANIFEST)
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a published backup. Raises ManifestInvalid: missing, not JSON, or not what the schema says."""
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
        if b"\\u0000" in content:
            raise ValueError("it has a NUL in it")
        document = json.loads(content)
    except FileNotFoundError as error:
        raise ManifestInvalid(path=path, problem="there is no manifest: the backup is not complete") from error
    except ValueError as error:
        raise ManifestInvalid(path=path, problem=f"not JSON that can be read: {error}") from error
    validate(document, path=path)
    return dict(document)


def validate(document: Any, *, path: Path) -> None:
    error = jsonschema.exceptions.best_match(_validator().iter_errors(document))
    if error is not None:
        raise ManifestInvalid(path=path, problem=f"{error.json_path}: {error.message}")


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = importlib.resources.files("nasbackup") / "schemas" / "manifest.schema.json"
    return jsonschema.Draft202012Validator(json.loads(schema.read_text()))
