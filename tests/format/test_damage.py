"""No damage is silent: every bit, every length, every order of records of every type of file."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import samples
from crash import damage
from crash.subjects import Subject, read_log
from samples import SAMPLES

import monolith_kv as mkv
from monolith_kv.storage import dense
from monolith_kv.storage.format import HEADER_BYTES


def subject(name: str, folder: Path) -> Subject:
    sample = SAMPLES[name]
    path = sample.write(folder)
    return Subject(name, path, lambda: sample.read(path))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_bit_is_refused_with_path_and_offset(name: str, folder: Path) -> None:
    tally = damage.flip_bits(subject(name, folder))
    assert tally.is_clean, tally.text()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_finished_file_is_refused_when_cut_anywhere(name: str, folder: Path) -> None:
    tally = damage.cut_lengths(subject(name, folder))
    assert tally.is_clean, tally.text()


@pytest.mark.parametrize("name", SAMPLES)
def test_missing_swapped_doubled_and_foreign_records_are_refused(name: str, folder: Path) -> None:
    (folder / "one").mkdir()
    foreign = SAMPLES[name].write(folder).read_bytes()
    tally = damage.splice_records(subject(name, folder / "one"), [foreign])
    assert tally.is_clean, tally.text()


@pytest.fixture
def open_log(folder: Path) -> Subject:
    path = samples.write_calls(folder)
    return Subject("calls", path, lambda: read_log(path, must_be_closed=False), is_open=True)


def test_a_flipped_bit_in_an_open_log_is_a_torn_tail_only_in_the_last_record(
    open_log: Subject,
) -> None:
    *_, last = samples.parts(open_log.path.read_bytes())
    tally = damage.flip_bits(open_log)
    assert tally.is_clean, tally.text()
    assert tally.outcomes == {"refused": 8 * last.offset, "cut": 8 * (last.end - last.offset)}


def test_an_open_log_cut_anywhere_yields_the_calls_before_the_cut(open_log: Subject) -> None:
    tally = damage.cut_lengths(open_log, range(HEADER_BYTES, open_log.path.stat().st_size))
    assert tally.is_clean, tally.text()


def test_every_flipped_bit_of_a_dense_file_is_refused(folder: Path) -> None:
    arrays = {"w": np.arange(100, dtype=np.float64), "bias": np.ones((3, 5), np.float32)}
    entry = dense.store(str(folder), 4, dense.pack(arrays))
    path = Path(dense.path_of(str(folder), entry["name"]))
    tally = damage.flip_bits(Subject("dense", path, lambda: dense.load(str(folder), entry)))
    assert tally.is_clean, tally.text()
    assert list(dense.unpack(dense.load(str(folder), entry))) == ["bias", "w"]


def test_no_flipped_bit_of_a_dense_file_crashes_the_parser(folder: Path) -> None:
    data = bytearray(samples.DENSE)
    for at, bit in itertools.product(range(len(data)), range(8)):
        data[at] ^= 1 << bit
        try:
            arrays = dense.unpack(bytes(data))
        except mkv.CorruptionError:
            pass
        else:
            assert sum(array.nbytes for array in arrays.values()) < len(data)
        data[at] ^= 1 << bit
