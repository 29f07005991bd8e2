"""The damage part of the kit in small: a sample of the positions of files of 64 KiB."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from crash import damage, subjects
from crash.figures import Figure
from monolith_kv_tools.mkv import find_problems

import monolith_kv as mkv

FIGURES = 8 + 4 + 2  # A file type each; cuts, splices, stores, targets; the overflow tier.

pytestmark = pytest.mark.timeout(600)


def test_no_damage_of_any_file_passes_in_silence() -> None:
    figures = list(damage.measure(full=False))
    assert len(figures) == FIGURES
    assert [figure for figure in figures if not figure.is_reached] == []


def damaged(path: Path) -> Path:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def test_verify_and_salvage_name_every_file_that_is_damaged(folder: Path) -> None:
    stores = subjects.make_stores(folder)
    files = [p.relative_to(stores.main) for p in damage.files_of(stores.main)]
    assert find_problems(str(stores.main)) == []
    for name in files:
        if name.name == "LOCK":  # Tells people who has the store; nothing depends on it.
            continue
        copy, saved = folder / "copy", folder / "saved"
        shutil.copytree(stores.main, copy)
        damaged(copy / name)
        assert any(str(name) in told for told in find_problems(str(copy))), name
        assert any(str(name) in told for told in mkv.salvage(copy, saved)), name
        with mkv.open(saved, delta_interval=None) as store:
            assert store.verify() == []
            assert len(store.table("item")) > 100
        shutil.rmtree(copy)
        shutil.rmtree(saved)


def test_a_reader_that_skips_checksums_is_caught(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = subjects.make_stores(folder)
    [delta] = [s for s in subjects.subjects_of(stores) if s.name == "delta"]
    monkeypatch.setattr("monolith_kv.storage.framing.crc32c", lambda data, seed: Lenient(seed))
    tally = damage.flip_bits(delta, range(4_000, 8_000, 97))
    assert not damage.figure("bits flipped", tally, 0.0).is_reached
    assert tally.silent


class Lenient(int):
    """A checksum that is equal to any other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def test_a_figure_tells_what_went_wrong() -> None:
    tally = damage.Tally()
    tally.add("byte 7", lambda: "refused")
    broken: Any = lambda: 1 / 0  # noqa: E731 - a check may return anything, and raise.
    tally.add("byte 8", broken)
    made: Figure = damage.figure("bits", tally, 0.0)
    assert not made.is_reached
    assert "byte 8: ZeroDivisionError" in made.measured
