"""The tests are tested: seeded bugs apply to the sources as they are, a sample of them is caught.

All of them, and the guards in pairs: make crash.
"""

from pathlib import Path

import pytest
from crash.bugs import BUGS, PAIRS
from crash.seeded import (
    BUGS_MIN,
    ROOT,
    VARIABLE,
    Workshop,
    apply_edits,
    edits_of,
    is_cython,
    measure,
)


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_applies_to_the_sources_as_they_are(folder: Path, name: str) -> None:
    check_edits(folder, [name])


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_bugs_apply_together(folder: Path, pair: tuple[str, str]) -> None:
    check_edits(folder, pair)


def check_edits(folder: Path, names: tuple[str, ...] | list[str]) -> None:
    edits = edits_of(names)
    for file in {edit.file for edit in edits}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((ROOT / file).read_bytes())
    apply_edits(folder, edits)
    for file in {edit.file for edit in edits}:
        assert (folder / file).read_bytes() != (ROOT / file).read_bytes()
        if file.endswith(".py"):
            compile((folder / file).read_text(), file, "exec")


def test_a_text_that_is_not_there_exactly_once_is_told(folder: Path) -> None:
    [edit] = BUGS["crc-skipped"].edits
    (folder / edit.file).parent.mkdir(parents=True)
    for text in ("", 2 * edit.old):
        (folder / edit.file).write_text(text)
        with pytest.raises(ValueError, match="expected once"):
            apply_edits(folder, [edit])


def test_extension_modules_have_one_bug_each() -> None:
    files = [edit.file for edit in edits_of(list(BUGS)) if is_cython(edit)]
    assert len(files) == len(set(files)) > 0  # All are compiled at once.


def test_there_are_as_many_bugs_as_promised_and_none_is_in_the_package() -> None:
    assert len(BUGS) >= BUGS_MIN
    for path in [*(ROOT / "monolith_kv").rglob("*.py*"), *(ROOT / "cython_src").iterdir()]:
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd", ".h"):
            assert VARIABLE not in path.read_text()


@pytest.mark.parametrize("name", BUGS)
def test_the_tests_that_have_to_catch_a_bug_are_there(name: str) -> None:
    for test in BUGS[name].caught_by:
        file, _, function = test.partition("[")[0].partition("::")
        assert f"def {function}" in (ROOT / file).read_text()


@pytest.mark.timeout(600)
def test_a_sample_of_the_bugs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    figures = list(measure(full=False))
    assert [figure.what for figure in figures if not figure.is_reached] == []


def test_a_bug_that_no_test_sees_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = BUGS["crc-skipped"]._replace(caught_by=["tests/unit/test_units.py"])
    monkeypatch.setitem(BUGS, "crc-skipped", harmless)
    with Workshop() as workshop:
        assert workshop.try_bugs(["crc-skipped"]).caught_by == ""
