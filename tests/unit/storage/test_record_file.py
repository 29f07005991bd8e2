"""Finished record files and their framing: what comes back, what is refused."""

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from samples import UUID

import monolith_kv as mkv
from monolith_kv.storage import files, format, framing
from monolith_kv.storage.format import (
    HEADER_BYTES,
    RECORD_BYTES_MAX,
    FileIdentity,
    FileType,
    RecordFlag,
    RecordKind,
)
from monolith_kv.storage.record_file import RecordReader, RecordWriter

IDENTITY = FileIdentity(UUID, 2, 7)


def write(path: Path, *records: Any, **options: Any) -> int:
    with RecordWriter(str(path), FileType.DELTA, IDENTITY, **options) as writer:
        for record in records:
            writer.append(*record)
        return writer.publish({"n": len(records)})


def forge(
    path: Path, kind: int, flags: int, payload: bytes, records: int = 1, **fields: int
) -> None:
    """Write a file with one record whose checksum is good and whose fields are as given."""
    head = format.pack_header(FileType.DELTA, IDENTITY)
    header = format.unpack_header(head, "x")
    values = {"table": 0, "count": 0, "durable": 0, **fields}
    first = framing.frame_record([payload], header.seed, header.crc, kind, flags, **values)
    end = framing.frame_record(
        [b"{}"], header.seed, first.crc, RecordKind.END, 0, table=0, count=records, durable=0
    )
    path.write_bytes(head + b"".join(map(bytes, [*first.buffers, *end.buffers])))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([RecordKind.ROWS, RecordKind.META, RecordKind.GATE]),
            st.binary(max_size=200),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**64 - 1),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_records_come_back_in_order(records: list[Any]) -> None:
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else ".") / f"mkv-{os.getpid()}.delta"
    try:
        size = write(path, *records, replace=True)
        reader = RecordReader(str(path), FileType.DELTA)
        found = [(r.kind, bytes(r.payload), r.table, r.count) for r in reader]
        assert found == [record[:4] for record in records]
        assert reader.meta == {"n": len(records)}
        assert size == path.stat().st_size
    finally:
        path.unlink(missing_ok=True)


def test_a_payload_may_be_given_in_buffers_and_is_aligned_for_arrays(folder: Path) -> None:
    array = np.arange(10, dtype=np.uint64)
    write(folder / "a", (RecordKind.ROWS, b"abc"), (RecordKind.ROWS, [b"12345678", array, b""]))
    payload = [record.payload for record in RecordReader(str(folder / "a"))][1]
    assert bytes(payload[:8]) == b"12345678"
    found = np.frombuffer(payload[8:], np.uint64)
    assert found.flags.aligned
    assert np.array_equal(found, array)
    assert not found.flags.writeable


def test_payloads_stay_valid_when_the_reader_is_gone(folder: Path) -> None:
    write(folder / "a", (RecordKind.ROWS, b"abc" * 1000))
    payload = next(iter(RecordReader(str(folder / "a")))).payload
    (folder / "a").unlink()
    assert bytes(payload) == b"abc" * 1000


def test_a_large_payload_is_cut_into_records_and_joined_again(folder: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 2 * RECORD_BYTES_MAX + 5, np.uint8)
    with RecordWriter(str(folder / "a"), FileType.DELTA, IDENTITY) as writer:
        writer.append(RecordKind.DENSE, [data[:7], data[7:]], count=4)
        assert writer.records == 3
        writer.append(RecordKind.GATE, bytes(RECORD_BYTES_MAX + 1), compress=True)
        writer.publish({})
    first, second = RecordReader(str(folder / "a"))
    assert first.count == 4
    assert np.array_equal(np.frombuffer(first.payload, np.uint8), data)
    assert second.payload == bytes(RECORD_BYTES_MAX + 1)
    assert (folder / "a").stat().st_size < 2 * RECORD_BYTES_MAX + 8192


def test_a_large_payload_without_its_last_part_is_refused(folder: Path) -> None:
    forge(folder / "a", RecordKind.GATE, RecordFlag.MORE, b"x")
    with pytest.raises(mkv.CorruptionError, match="goes on, but the file has ended") as caught:
        RecordReader(str(folder / "a")).verify()
    assert caught.value.offset == HEADER_BYTES


def test_compression_is_kept_only_where_it_helps(folder: Path) -> None:
    noise = np.random.default_rng(0).bytes(1000)
    write(folder / "a", (RecordKind.GATE, noise, 0, 0, True))
    write(folder / "b", (RecordKind.GATE, noise, 0, 0, False))
    write(folder / "c", (RecordKind.GATE, b"a" * 1000, 0, 0, True))
    assert (folder / "a").stat().st_size == (folder / "b").stat().st_size
    assert (folder / "c").stat().st_size < (folder / "a").stat().st_size - 900


@pytest.mark.parametrize("size", [RECORD_BYTES_MAX + 1, 1 << 30])
def test_a_bomb_is_refused_before_it_is_inflated(folder: Path, size: int) -> None:
    packer = zstandard.ZstdCompressor().compressobj(size=size)
    pieces = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    bomb = b"".join([*pieces, packer.compress(bytes(size & 0xFFFFF)), packer.flush()])
    forge(folder / "a", RecordKind.GATE, RecordFlag.COMPRESSED, bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(mkv.CorruptionError, match=f"states {size} bytes"):
        RecordReader(str(folder / "a")).verify()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    "payload",
    [
        b"no zstd",
        zstandard.ZstdCompressor(write_content_size=False).compress(b"unstated"),
        zstandard.ZstdCompressor().compress(b"twice") * 2,
        zstandard.ZstdCompressor().compress(b"cut")[:-1],
    ],
)
def test_a_frame_that_is_not_exactly_one_with_its_size_is_refused(
    folder: Path, payload: bytes
) -> None:
    forge(folder / "a", RecordKind.GATE, RecordFlag.COMPRESSED, payload)
    with pytest.raises(mkv.CorruptionError):
        RecordReader(str(folder / "a")).verify()


def test_unknown_kinds_and_flags_are_a_newer_version(folder: Path) -> None:
    for kind, flags in ((99, 0), (RecordKind.ROWS, 0x80)):
        forge(folder / "a", kind, flags, b"x")
        with pytest.raises(mkv.FormatVersionError, match="use a newer monolith_kv"):
            RecordReader(str(folder / "a")).verify()


def test_a_length_in_a_header_is_never_trusted(folder: Path) -> None:
    write(folder / "a", (RecordKind.ROWS, b"x" * 100))
    data = bytearray((folder / "a").read_bytes())
    for length in (101, 1 << 20, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 2**63, 2**64 - 1):
        data[HEADER_BYTES + 8 : HEADER_BYTES + 16] = length.to_bytes(8, "little")
        (folder / "a").write_bytes(data)
        with pytest.raises(mkv.CorruptionError):
            RecordReader(str(folder / "a")).verify()


def test_a_record_past_the_cap_is_refused_though_its_checksum_is_good(folder: Path) -> None:
    forge(folder / "a", RecordKind.ROWS, 0, bytes(RECORD_BYTES_MAX + 8))
    with pytest.raises(mkv.CorruptionError, match="above the cap"):
        RecordReader(str(folder / "a")).verify()


def test_an_end_that_counts_other_records_is_refused(folder: Path) -> None:
    for records in (0, 2, 2**64 - 1):
        forge(folder / "a", RecordKind.ROWS, 0, b"x", records)
        with pytest.raises(mkv.CorruptionError, match=f"counts {records} records, found 1"):
            RecordReader(str(folder / "a")).verify()


def test_a_file_appears_only_when_it_is_complete(folder: Path) -> None:
    writer = RecordWriter(str(folder / "a"), FileType.DELTA, IDENTITY)
    writer.append(RecordKind.ROWS, b"x")
    assert files.list_names(str(folder)) == []
    writer.publish({})
    assert os.listdir(folder) == ["a"]
    with pytest.raises(mkv.Error, match="begin a new file"):
        writer.append(RecordKind.ROWS, b"x")


def test_what_is_not_published_leaves_nothing(folder: Path) -> None:
    with RecordWriter(str(folder / "a"), FileType.DELTA, IDENTITY) as writer:
        writer.append(RecordKind.ROWS, b"x")
    writer.discard()
    assert os.listdir(folder) == []


def test_a_taken_name_is_kept_unless_it_is_to_be_replaced(folder: Path) -> None:
    write(folder / "a", (RecordKind.ROWS, b"old"))
    with pytest.raises(FileExistsError):
        write(folder / "a", (RecordKind.ROWS, b"new"))
    assert [bytes(r.payload) for r in RecordReader(str(folder / "a"))] == [b"old"]
    write(folder / "a", (RecordKind.ROWS, b"new"), replace=True)
    assert [bytes(r.payload) for r in RecordReader(str(folder / "a"))] == [b"new"]
    assert os.listdir(folder) == ["a"]


def test_a_forked_child_neither_writes_nor_removes(folder: Path) -> None:
    writer = RecordWriter(str(folder / "a"), FileType.DELTA, IDENTITY)
    child = os.fork()
    if child == 0:
        try:
            writer.append(RecordKind.ROWS, b"child")
        except mkv.ForkedError:
            writer.discard()
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    writer.append(RecordKind.ROWS, b"parent")
    writer.publish({})
    assert [bytes(r.payload) for r in RecordReader(str(folder / "a"))] == [b"parent"]


@pytest.fixture
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_store_full_and_leaves_nothing(folder: Path, small_files: None) -> None:
    with pytest.raises(mkv.StoreFullError):
        write(folder / "a", (RecordKind.ROWS, bytes(20000)))
    assert os.listdir(folder) == []


def test_several_threads_may_read_at_once(folder: Path) -> None:
    write(folder / "a", *((RecordKind.ROWS, bytes([n]) * 5000) for n in range(100)))
    reader = RecordReader(str(folder / "a"))
    found: list[int] = []

    def read() -> None:
        found.append(sum(record.payload[0] for record in reader))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [sum(range(100))] * 4


@pytest.mark.parametrize(
    "text", [b"[1]", b"{", b"\xff", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 100_000]
)
def test_json_is_one_object_with_distinct_keys_and_finite_numbers(text: bytes) -> None:
    with pytest.raises(mkv.CorruptionError) as caught:
        framing.decode_json(memoryview(text), "x", 64)
    assert caught.value.offset == 64


def test_json_is_the_same_bytes_for_the_same_object() -> None:
    assert framing.encode_json({"b": 1, "a": "\u00e9"}) == '{"a":"\u00e9","b":1}'.encode()
    with pytest.raises(ValueError):
        framing.encode_json({"a": float("nan")})
