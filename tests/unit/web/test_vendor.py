"""What the browser loads is what package-lock.json names, and nothing comes from anywhere else."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WEB = ROOT / "include" / "nasbackup" / "web"
VENDOR = WEB / "static" / "vendor"
ORIGINS = json.loads((VENDOR / "origins.json").read_text())
LOCK = json.loads((ROOT / "package-lock.json").read_text())
TEMPLATES = sorted((WEB / "templates").glob("*.html"))
OURS = sorted(file for file in (WEB / "static").iterdir() if file.is_file())


@pytest.mark.parametrize("name", ORIGINS)
def test_a_vendored_file_is_that_of_the_locked_package(name: str) -> None:
    origin = ORIGINS[name]
    locked = LOCK["packages"][f"node_modules/{origin['package']}"]
    assert (origin["version"], origin["integrity"]) == (locked["version"], locked["integrity"]), "run scripts/vendor"
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == origin["sha256"]


def test_every_vendored_file_has_an_origin_and_every_package_a_licence() -> None:
    assert {file.name for file in VENDOR.iterdir()} == {*ORIGINS, "origins.json"}
    packages = {origin["package"] for origin in ORIGINS.values()}
    assert packages == set(LOCK["packages"][""]["dependencies"])
    assert {origin["package"] for origin in ORIGINS.values() if origin["file"] == "LICENSE"} == packages


@pytest.mark.parametrize("file", [*TEMPLATES, *OURS], ids=lambda file: file.name)
def test_nothing_is_loaded_from_another_host(file: Path) -> None:
    addresses = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}\S*", file.read_text())
    assert [address for address in addresses if not address.startswith("http://www.w3.org/2000/svg")] == []


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_templates_have_no_script_and_no_style_of_their_own(file: Path) -> None:
    """The Content-Security-Policy would block them, in silence."""
    text = file.read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:", text) == []
    assert "|safe" not in text.replace(" ", ""), "nothing is exempt from escaping"
