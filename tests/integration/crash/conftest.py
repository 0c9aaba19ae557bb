"""Asserts in the helpers say as much as those in tests. This suite is a run of its own: see docs/guarantees.md."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.integration.crash.sweep", "tests.integration.crash.world")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.crash)
