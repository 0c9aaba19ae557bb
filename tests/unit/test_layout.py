"""Names on the NAS: whatever a VM or an image is called, its name is one harmless, telling path component."""

from __future__ import annotations

import os
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from pathlib import PurePosixPath

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from nasbackup import layout

from tests.unit.builders import volume

HOSTILE = ["", ".", "..", "...", "/", "//", "../../etc", "/etc/passwd", "a/b", "a\x00b", "a\nb", "~root", "-rf", "\x7f"]
HOSTILE += ["%", "%2F", "%252F", ".partial-x", ".nasbackup-repository.json", "\u202egnp.exe", "\ud800", "\\", "x" * 500]
HOSTILE += ["ä" * 200, "日" * 100, "\x1b[31m", " ", "\u2028", "\u200b", "a%", "-", "~"]
HARMLESS = [
    "i-2-1234-VM",
    "web.example.org",
    "Ubuntu 24.04",
    "été-日本-Москва",
    "a_b-c.d~e",
    "x" * 120,
    "'quoted'",
    "[a]",
]
ANY_TEXT = st.text(st.characters()) | st.text(st.sampled_from("./%-~a\x00\n\ud800ä"), max_size=300)


@given(text=ANY_TEXT)
@example(text="..")
@example(text="x" * 121)
@example(text="ä" * 61)
def test_any_text_becomes_one_safe_path_component(text: str) -> None:
    safe = layout.safe_component(text)
    assert safe not in ("", ".", "..")
    assert not safe.startswith((".", "-", "~"))
    assert "/" not in safe
    assert not [character for character in safe if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp", "Cf")]
    assert PurePosixPath("/root", safe).parent == PurePosixPath("/root")
    assert os.path.normpath(f"/root/{safe}") == f"/root/{safe}"


@given(text=st.text(st.characters(codec="utf-8"), max_size=300))
@example(text="日" * 100)
def test_with_prefix_suffix_and_attempt_it_still_fits_a_file_name(text: str) -> None:
    sources = [f"/one/{text}.qcow2", f"/two/{text}.qcow2"]  # the same name twice: a hash is added
    for name in layout.volume_names([volume(source) for source in sources]).values():
        file = layout.volume_file(name=name, is_root=False)
        assert len(layout.attempt_file(file=file, attempt="0123456789ab").encode()) <= 255
    partial = layout.partial_directory(layout.external_id(vm=text, when=datetime(2026, 1, 31, tzinfo=UTC)))
    assert max(len(part.encode()) for part in partial.split("/")) <= 255


@given(one=ANY_TEXT, other=ANY_TEXT)
def test_different_texts_get_different_names(one: str, other: str) -> None:
    assert (layout.safe_component(one) == layout.safe_component(other)) == (one == other)


def test_hostile_and_harmless_names_are_all_told_apart() -> None:
    encoded = [layout.safe_component(text) for text in HOSTILE]  # what they became is a text of its own
    texts = {text for text in (*HOSTILE, *HARMLESS, *encoded) if len(text) < 60}
    assert len({layout.safe_component(text) for text in texts}) == len(texts)
    long = ["x" * 500, "x" * 501, "ä" * 200, "ä" * 201, "y" + "x" * 500]
    assert len({layout.safe_component(text) for text in long}) == len(long)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_names_stay_as_they_are(text: str) -> None:
    assert layout.safe_component(text) == text


def test_an_escape_can_be_read_by_people() -> None:
    assert layout.safe_component("../../etc") == "%2E.%2F..%2Fetc"
    assert layout.safe_component("50%") == "50%25"


@pytest.mark.parametrize("text", HOSTILE)
def test_the_external_id_has_exactly_two_parts_below_the_root(text: str) -> None:
    external_id = layout.external_id(vm=text, when=datetime(2026, 1, 31, 22, 0, 5, tzinfo=UTC))
    instance, directory = external_id.split("/")
    assert directory == "2026.01.31.22.00.05"
    assert layout.partial_directory(external_id) == f"{instance}/.partial-2026.01.31.22.00.05"


def test_the_external_id_is_in_utc_wherever_the_clock_stands() -> None:
    moment = datetime(2026, 1, 31, 23, 30, 5, 999_999, tzinfo=UTC)
    for hours in (-12, 0, 5.5, 14):
        local = moment.astimezone(timezone(timedelta(hours=hours)))
        assert layout.external_id(vm="vm", when=local) == "vm/2026.01.31.23.30.05"


def test_the_checkpoint_is_named_by_epoch_seconds() -> None:
    assert layout.checkpoint_name(when=datetime(1970, 1, 1, 0, 1, 40, 900_000, tzinfo=UTC)) == "backup-100"


@pytest.mark.parametrize("text", [*HOSTILE, *HARMLESS])
def test_a_partial_directory_says_whose_it_is(text: str) -> None:
    external_id = layout.external_id(vm=text, when=datetime(2026, 1, 31, 22, 0, 5, tzinfo=UTC))
    partial = layout.partial_directory(external_id)
    assert layout.external_id_of_partial(partial) == external_id
    assert layout.is_partial(partial.split("/")[1])
    assert layout.is_backup_directory(external_id.split("/")[1])


@pytest.mark.parametrize(
    "name",
    [
        *("", ".partial-", "lost+found", "2026.01.31", "2026-01-31.22.00.05"),
        *("2026.01.31.22.00.05x", "x2026.01.31.22.00.05", "2026.01.31.22.00.05\n", "2026.01.31.22.00.0\u0665"),
    ],
)
def test_directories_of_others_are_not_taken_for_ours(name: str) -> None:
    assert not layout.is_backup_directory(name)
    assert not layout.is_partial(name)
    assert not layout.is_partial(f".partial-{name}")


# --- volumes --------------------------------------------------------------------------------------------------


def names(*sources: str) -> dict[str, str]:
    return layout.volume_names([volume(source) for source in sources])


def test_a_volume_is_named_after_its_image() -> None:
    assert names("/images/ROOT-1.qcow2", "/dev/vg/data") == {"/images/ROOT-1.qcow2": "ROOT-1", "/dev/vg/data": "data"}


@given(sources=st.lists(st.text("ab./", min_size=1, max_size=6).map(lambda text: "/" + text), unique=True))
def test_names_and_files_are_unique_within_the_vm(sources: list[str]) -> None:
    named = names(*sources)
    assert set(named) == set(sources)
    assert len(set(named.values())) == len(sources)


def test_a_name_made_unique_cannot_be_another_volumes_own_name() -> None:
    twins = names("/one/disk.qcow2", "/two/disk.qcow2")
    rival = f"/three/{twins['/one/disk.qcow2']}.qcow2"
    named = names("/one/disk.qcow2", "/two/disk.qcow2", rival)
    assert len(set(named.values())) == 3


def test_names_do_not_depend_on_the_order_of_disks() -> None:
    sources = ["/one/disk.qcow2", "/two/disk.qcow2", "/three/root.qcow2"]
    assert names(*sources) == names(*reversed(sources))


def test_of_two_volumes_with_one_file_name_each_keeps_its_name_when_others_come_and_go() -> None:
    both = names("/one/disk.qcow2", "/two/disk.qcow2")
    with_more = names("/one/disk.qcow2", "/two/disk.qcow2", "/three/other.qcow2")
    assert {source: with_more[source] for source in both} == both


def test_the_first_volume_is_the_root_and_the_others_are_data() -> None:
    assert layout.volume_file(name="ROOT-1", is_root=True) == "root.ROOT-1.qcow2"
    assert layout.volume_file(name="DATA-2", is_root=False) == "datadisk.DATA-2.qcow2"


def test_the_names_of_attempts_are_those_of_the_file_and_never_the_file() -> None:
    assert layout.attempt_file(file="root.a.qcow2", attempt="f00") == "root.a.qcow2.attempt-f00"
    assert layout.attempt_file(file="root.a.qcow2", attempt="") != "root.a.qcow2"
