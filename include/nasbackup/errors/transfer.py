"""Bytes on their way."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError


class TransferError(NasBackupError):
    """Bytes could not be moved, or are not the bytes they should be."""

    retryable = True


class ToolFailed(TransferError):
    template = "{tool} failed with exit code {exit_code}: {stderr}"


class ReadFailed(TransferError):
    template = "Reading {source} at offset {offset} failed: {reason}"


class WriteFailed(TransferError):
    template = "Writing {target} at offset {offset} failed: {reason}"


class TargetFull(TransferError):
    template = "No space left while writing {target}: {needs} bytes were still to come, {has} are free."
    retryable = False


class VerifyFailed(TransferError):
    template = "{file}: {problem}"
