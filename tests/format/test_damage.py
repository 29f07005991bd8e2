"""No damage is silent: every bit, every length, every order of records of every type of file."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import samples
from samples import SAMPLES

import monolith_kv as mkv
from monolith_kv.storage import call_log, dense
from monolith_kv.storage.format import HEADER_BYTES


def flips(path: Path) -> Iterator[int]:
    """Flip one bit after the other in the file; yields the byte while its bit is wrong."""
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at, bit in itertools.product(range(len(data)), range(8)):
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << bit]))
            yield at
            file.seek(at)
            file.write(data[at : at + 1])
    assert path.read_bytes() == data


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_bit_is_refused_with_path_and_offset(name: str, folder: Path) -> None:
    sample = SAMPLES[name]
    path = sample.write(folder)
    sample.read(path)
    for at in flips(path):
        with pytest.raises(mkv.CorruptionError) as caught:
            sample.read(path)
        assert caught.value.path == str(path), at
        assert caught.value.offset is not None, at
        assert 0 <= caught.value.offset <= path.stat().st_size, at
    sample.read(path)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_finished_file_is_refused_when_cut_anywhere(name: str, folder: Path) -> None:
    sample = SAMPLES[name]
    path = sample.write(folder)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(mkv.CorruptionError) as caught:
            sample.read(path)
        assert caught.value.path == str(path)
    for more in (b"\0", b"\0" * 4096, data[HEADER_BYTES:]):
        path.write_bytes(data + more)
        with pytest.raises(mkv.CorruptionError):
            sample.read(path)


@pytest.mark.parametrize("name", SAMPLES)
def test_missing_swapped_doubled_and_foreign_records_are_refused(name: str, folder: Path) -> None:
    sample = SAMPLES[name]
    for sub in ("one", "two"):
        (folder / sub).mkdir()
    path = sample.write(folder / "one")
    foreign = sample.write(folder / "two").read_bytes()
    data = path.read_bytes()
    head = data[:HEADER_BYTES]
    records = [data[part.offset : part.end] for part in samples.parts(data)]
    theirs = [foreign[part.offset : part.end] for part in samples.parts(foreign)]
    wrong = [foreign[:HEADER_BYTES] + b"".join(records)]
    for index, record in enumerate(records):
        before, after = records[:index], records[index + 1 :]
        wrong.append(head + b"".join(before + after))
        wrong.append(head + b"".join([*before, record, record, *after]))
        wrong.append(head + b"".join([*before, theirs[index], *after]))
        if after:
            wrong.append(head + b"".join([*before, after[0], record, *after[1:]]))
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(mkv.CorruptionError):
            sample.read(path)


def test_a_flipped_bit_in_an_open_log_is_a_torn_tail_only_in_the_last_record(folder: Path) -> None:
    path = samples.write_calls(folder)
    spans = [(part.offset, part.end) for part in samples.parts(path.read_bytes())]
    whole = [type(call) for call in samples.read_calls(path)]
    last, end = spans[-1]
    for at in flips(path):
        if at < last:
            with pytest.raises(mkv.CorruptionError) as caught:
                samples.read_calls(path)
            assert caught.value.offset is not None
            assert caught.value.offset <= at
            continue
        log = call_log.read(str(path))
        assert [type(call) for call in log] == whole[:-1], at
        assert log.torn == (last, end - last, 1), at
        log.close()


def test_an_open_log_cut_anywhere_yields_the_calls_before_the_cut(folder: Path) -> None:
    path = samples.write_calls(folder)
    data = path.read_bytes()
    ends = [part.end for part in samples.parts(data)]
    for size in range(HEADER_BYTES, len(data)):
        path.write_bytes(data[:size])
        kept = sum(end <= size for end in ends)
        log = call_log.read(str(path))
        assert len(list(log)) == kept, size
        start = ends[kept - 1] if kept else HEADER_BYTES
        assert log.torn == (None if size == start else (start, size - start, 1)), size
        log.close()
    for size in range(HEADER_BYTES):
        path.write_bytes(data[:size])
        with pytest.raises(mkv.CorruptionError):
            call_log.read(str(path))


def test_every_flipped_bit_of_a_dense_file_is_refused(folder: Path) -> None:
    arrays = {"w": np.arange(100, dtype=np.float64), "bias": np.ones((3, 5), np.float32)}
    entry = dense.store(str(folder), 4, dense.pack(arrays))
    path = Path(dense.path_of(str(folder), entry["name"]))
    for _ in flips(path):
        with pytest.raises(mkv.CorruptionError):
            dense.load(str(folder), entry)
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
