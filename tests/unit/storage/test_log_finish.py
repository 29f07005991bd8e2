"""Ending a log for a writer that died: afterwards it is a closed log like any other."""

import os
from pathlib import Path

import pytest
import samples

import monolith_kv as mkv
from monolith_kv.storage import files
from monolith_kv.storage.format import FileType
from monolith_kv.storage.log_finish import finish_log


def test_a_log_whose_tail_was_cut_ends_and_is_never_cut_again(folder: Path) -> None:
    path = samples.write_calls(folder)
    last = list(samples.parts(path.read_bytes()))[-1]
    os.truncate(path, last.end - 3)
    files.cut_tail(str(path), last.offset)
    whole = len(samples.read_calls(path))
    finish_log(str(path), FileType.CALLS)
    assert len(samples.read_calls(path, must_be_closed=True)) == whole
    assert list(samples.parts(path.read_bytes()))[-1].header.durable == last.offset
    data = bytearray(path.read_bytes())
    data[last.offset - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(mkv.CorruptionError):
        samples.read_calls(path)


def test_a_log_that_has_its_end_stays_as_it_is(folder: Path) -> None:
    path = samples.write_calls(folder, clean=True)
    before = path.read_bytes()
    finish_log(str(path), FileType.CALLS)
    assert path.read_bytes() == before


def test_damage_is_not_sealed_in(folder: Path) -> None:
    path = samples.write_calls(folder)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(mkv.CorruptionError):
        finish_log(str(path), FileType.CALLS)
    assert path.read_bytes() == data


def test_no_room_leaves_the_log_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = samples.write_calls(folder)
    before = path.read_bytes()
    real, calls = files.sync_file, []

    def second_fails(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(files, "sync_file", second_fails)
    with pytest.raises(mkv.StoreFullError):
        finish_log(str(path), FileType.CALLS)
    assert path.read_bytes() == before
