"""Promise: no file name is mistaken for an option, a protocol or a list of options."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from nasbackup.errors import ToolFailed
from nasbackup.tools import node, run_tool


def test_a_node_states_driver_and_absolute_file() -> None:
    name = '-a:b,c "d"\né'
    spec = json.loads(node(Path(name), "qcow2", backing=None).removeprefix("json:"))
    assert spec == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(Path.cwd() / name)},
        "backing": None,
    }


def test_a_name_that_is_not_utf8_is_refused_before_any_tool_runs() -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        node(Path(os.fsdecode(b"/disk-\xff.qcow2")), "qcow2")


def test_a_failing_tool_is_reported_with_its_words() -> None:
    with pytest.raises(ToolFailed, match="No such file or directory") as caught:
        run_tool("ls", "--", "/does/not/exist")
    assert caught.value.data["exit_code"] == 2
