"""Dependencies point inwards: dags -> airflow/ -> the outside worlds -> pure decisions -> model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "include" / "nasbackup"
WORLDS = ("catalog", "hypervisor", "nas", "transfer")
PURE = (
    "model",
    "past",
    "words",
    "handling",
    "machine",
    "errors",
    "settings",
    "layout",
    "chain",
    "estimate",
    "fleet",
    "retention",
    "sla",
)
OUTSIDE = {"airflow", "libvirt", "libvirt_qemu", "psycopg2", "nbd", "subprocess", "socket"}
PROVIDERS = tuple(f"airflow.providers.{name}" for name in ("standard", "smtp", "http", "apprise"))
LONGEST = 300

FILES = sorted(
    file
    for folder in ("include", "dags", "plugins")
    for file in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in file.parts
)


def modules_imported_by(source: str) -> set[str]:
    """Dotted names, as deep as they are written: ``from a import b`` counts as a and a.b. Also inside functions."""
    return set(_imports(ast.parse(source)))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only: they can be searched for"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def imports(file: Path) -> set[str]:
    return modules_imported_by(file.read_text())


def reaches(imported: set[str], package: str) -> set[str]:
    return {name for name in imported if name == package or name.startswith(package + ".")}


def within(*parts: str) -> list[Path]:
    return [file for file in FILES if file.is_relative_to(PACKAGE.joinpath(*parts))]


def test_the_rules_are_checked_on_files_that_exist() -> None:
    assert all(within(world) for world in WORLDS)
    assert len(FILES) > 30


def test_imports_are_found_wherever_they_hide() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    import e\n    importlib.import_module('g.h')\n"
    assert modules_imported_by(source) == {"a.b", "c", "c.d", "e", "g.h"}


@pytest.mark.parametrize("world", WORLDS)
def test_the_four_outside_worlds_do_not_know_each_other_nor_the_story(world: str) -> None:
    strangers = {*WORLDS, "steps", "restore", "reconcile", "cli", "airflow", "web"} - {world}
    for file in within(world):
        for stranger in strangers:
            assert not reaches(imports(file), f"nasbackup.{stranger}"), f"{file.name} imports {stranger}"


@pytest.mark.parametrize("world", WORLDS)
def test_each_outside_library_is_used_in_its_world_only(world: str) -> None:
    library = {"catalog": "psycopg2", "hypervisor": "libvirt", "nas": "libvirt_qemu", "transfer": "nbd"}[world]
    users = {file.relative_to(PACKAGE).parts[0] for file in within() if reaches(imports(file), library)}
    assert users <= {world}


PURE_FILES = [file for file in within() if file.relative_to(PACKAGE).parts[0].removesuffix(".py") in PURE]


def test_every_pure_decision_is_found() -> None:
    assert {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in PURE_FILES} == set(PURE)


@pytest.mark.parametrize("file", PURE_FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_pure_decisions_know_no_outside_world(file: Path) -> None:
    imported = imports(file)
    assert not [name for outside in OUTSIDE for name in reaches(imported, outside)]
    inside = {name.split(".")[1] for name in reaches(imported, "nasbackup") if "." in name}
    assert inside <= set(PURE)


def test_model_and_errors_are_the_innermost() -> None:
    assert not reaches(imports(PACKAGE / "handling.py"), "nasbackup")
    assert not reaches(imports(PACKAGE / "words.py"), "nasbackup")
    assert reaches(imports(PACKAGE / "model.py"), "nasbackup") <= {
        "nasbackup.handling",
        "nasbackup.handling.Compression",
    }
    for file in within("errors"):
        assert reaches(imports(file), "nasbackup") == reaches(imports(file), "nasbackup.errors"), file


def test_only_the_airflow_package_the_dags_and_the_plugins_know_airflow() -> None:
    for file in within():
        if not file.is_relative_to(PACKAGE / "airflow"):
            imported = imports(file)
            assert not reaches(imported, "airflow"), file
            assert not reaches(imported, "nasbackup.airflow"), file


def test_airflow_is_used_through_its_public_interface() -> None:
    for file in FILES:
        for name in reaches(imports(file), "airflow"):
            if not file.is_relative_to(ROOT / "plugins"):
                assert name.startswith(("airflow.sdk", *PROVIDERS)) or name in (
                    "airflow",
                    "airflow.providers",
                    # The cluster policy is the scheduler's side, and so is the pool that it makes.
                    "airflow.policies",
                    "airflow.policies.hookimpl",
                    "airflow.models.pool",
                    "airflow.models.pool.Pool",
                ), f"{file}: {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_needs_scrolling_to_be_understood(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))
