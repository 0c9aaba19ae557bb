"""Asserts in the helpers say as much as those in tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.integration.crash.sweep", "tests.integration.crash.world")
