"""Cold rows in a snapshot: read as rows, or only told of, with one answer; damage of either."""

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
from checks import FAST_FOLDER
from hypothesis import given
from hypothesis import strategies as st

import monolith_kv as mkv
from monolith_kv._checksum import crc32c
from monolith_kv.storage import cold_rows
from monolith_kv.storage.format import (
    RECORD_HEADER_BYTES,
    FileIdentity,
    FileType,
    RecordKind,
)
from monolith_kv.storage.record_file import RecordReader, RecordWriter
from monolith_kv.storage.snapshot import SnapshotReader, SnapshotWriter

IDENTITY = FileIdentity(samples.UUID, samples.EPOCH, samples.SEQUENCE)
DIGEST = (3, 2**64 - 1)


def write(path: Path, *pairs: tuple[int, int]) -> RecordReader:
    """Write cold rows: of each (table, count)."""
    with RecordWriter(str(path), FileType.SNAPSHOT, IDENTITY, replace=True) as writer:
        for table, count in pairs:
            places = samples.places(count, writer.seed)
            assert cold_rows.append_cold(writer, table, [places[:2], places[2:]], DIGEST) == count
        writer.publish({})
    return RecordReader(str(path))


def joined(reader: RecordReader, *, is_read: bool) -> list[Any]:
    records = iter(reader) if is_read else reader.skipping(cold_rows.SKIPPED)
    return list(cold_rows.joined(records, reader.path, reader.header.seed, is_read=is_read))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), max_size=5))
def test_what_is_told_of_is_what_is_read(pairs: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        reader = write(Path(folder, "a"), *pairs)
        data = Path(folder, "a").read_bytes()
        read, told = joined(reader, is_read=True), joined(reader, is_read=False)
        assert len(read) == len(told) == len(pairs)
        for (table, count), rows, cold in zip(pairs, read, told, strict=True):
            assert (rows.kind, rows.table, rows.count) == (RecordKind.ROWS, table, count)
            records = np.frombuffer(rows.payload, np.uint8).reshape(count, -1)
            heads = np.ascontiguousarray(records[:, :16])
            assert (cold.table, cold.digest) == (table, DIGEST)
            assert np.array_equal(heads.view("<u8")[:, 0], cold.fids)
            assert np.array_equal(heads.view("<i8")[:, 1], cold.times)
            size = samples.ROW_BYTES + 4
            assert cold_rows.has_places(cold, size)
            assert not cold_rows.has_places(cold, size + 8)
            assert not cold_rows.has_places(cold, size - 8)
            for index, record in enumerate(records):
                at = cold.offset + index * size
                (stored,) = struct.unpack_from("<I", data, at + samples.ROW_BYTES)
                assert data[at : at + samples.ROW_BYTES] == record.tobytes()
                assert stored == crc32c(record.tobytes(), reader.header.seed)


def test_rows_that_are_not_read_are_not_even_asked_of_the_disk(folder: Path) -> None:
    reader = write(folder / "a", (3, 40))
    with (folder / "a").open("r+b") as file:  # In the middle of the rows.
        file.seek(64 + 40 + 500)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert len(joined(reader, is_read=False)) == 1
    with pytest.raises(mkv.CorruptionError, match="crc mismatch"):
        joined(reader, is_read=True)


def test_every_byte_but_those_of_the_rows_is_verified_without_reading_them(folder: Path) -> None:
    reader = write(folder / "a", (3, 5), (4, 2))
    told = joined(reader, is_read=False)
    data = (folder / "a").read_bytes()
    unread = {at for cold in told for at in range(cold.offset, cold.offset + cold.size)}
    for at in set(range(len(data))) - unread:
        (folder / "a").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            found = joined(RecordReader(str(folder / "a")), is_read=False)
        except (mkv.CorruptionError, mkv.FormatVersionError):
            continue
        # What a header says of rows that are not read is compared, or of no consequence.
        assert str(found) == str(told), at


Case = tuple[list[tuple[int, int, int, bytes]], str]
IDS = struct.pack("<QQQq", 1, 2, 7, 9)
PLACE = struct.pack("<Qq", 7, 9) + bytes(8)
CASES: dict[str, Case] = {
    "ids alone": ([(RecordKind.COLD_IDS, 3, 1, IDS)], "without the rows"),
    "rows alone": ([(RecordKind.COLD, 3, 1, PLACE)], "without their ids"),
    "rows twice": (2 * [(RecordKind.COLD, 3, 1, PLACE)], "not of the cold rows before it"),
    "another table": (
        [(RecordKind.COLD, 3, 1, PLACE), (RecordKind.COLD_IDS, 4, 1, IDS)],
        "not of the cold rows before it",
    ),
    "another count": (
        [(RecordKind.COLD, 3, 1, PLACE), (RecordKind.COLD_IDS, 3, 2, IDS)],
        "not of the cold rows before it",
    ),
    "too short": (
        [(RecordKind.COLD, 3, 1, PLACE), (RecordKind.COLD_IDS, 3, 1, IDS[:-1])],
        "count and length",
    ),
    "none": ([(RecordKind.COLD, 3, 0, b""), (RecordKind.COLD_IDS, 3, 0, IDS[:16])], "count and"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_read", [True, False])
def test_records_that_do_not_belong_together_are_refused(
    folder: Path, name: str, is_read: bool
) -> None:
    parts, match = CASES[name]
    with RecordWriter(str(folder / "a"), FileType.SNAPSHOT, IDENTITY) as writer:
        for kind, table, count, payload in parts:
            writer.append(kind, payload, table, count)
        writer.publish({})
    with pytest.raises(mkv.CorruptionError, match=match):
        joined(RecordReader(str(folder / "a")), is_read=is_read)


@pytest.mark.parametrize("is_read", [True, False])
def test_cold_rows_in_the_place_of_others_are_refused(folder: Path, is_read: bool) -> None:
    write(folder / "a", (3, 5), (4, 5))
    first, second = joined(RecordReader(str(folder / "a")), is_read=False)
    data = bytearray((folder / "a").read_bytes())
    size = second.offset - first.offset  # Of a pair of records.
    at = first.offset - RECORD_HEADER_BYTES
    data[at : at + size] = data[at + size : at + 2 * size]
    (folder / "a").write_bytes(data)
    with pytest.raises(mkv.CorruptionError):
        joined(RecordReader(str(folder / "a")), is_read=is_read)


@pytest.mark.parametrize("is_read", [True, False])
def test_an_end_that_counts_other_records_is_refused(folder: Path, is_read: bool) -> None:
    with RecordWriter(str(folder / "a"), FileType.SNAPSHOT, IDENTITY) as writer:
        cold_rows.append_cold(writer, 3, [samples.places(3, writer.seed)], DIGEST)
        writer.records += 1
        writer.publish({})
    with pytest.raises(mkv.CorruptionError, match="counts 3 records, found 2"):
        joined(RecordReader(str(folder / "a")), is_read=is_read)


def test_compressed_places_are_read_as_rows_and_never_taken(folder: Path) -> None:
    with RecordWriter(str(folder / "a"), FileType.SNAPSHOT, IDENTITY) as writer:
        place = struct.pack("<Qq", 7, 9) + bytes(1_000)
        place += crc32c(place, writer.seed).to_bytes(4, "little")
        writer.append(RecordKind.COLD, place, 3, 1, compress=True)
        writer.append(RecordKind.COLD_IDS, IDS, 3, 1)
        writer.publish({})
    reader = RecordReader(str(folder / "a"))
    (rows,) = joined(reader, is_read=True)
    (cold,) = joined(reader, is_read=False)
    assert rows.payload == place[:-4]
    assert not cold_rows.has_places(cold, len(place))


@pytest.mark.parametrize("size", [1, 16, 19])
def test_places_too_small_for_an_id_and_a_time_are_refused(folder: Path, size: int) -> None:
    with RecordWriter(str(folder / "a"), FileType.SNAPSHOT, IDENTITY) as writer:
        writer.append(RecordKind.COLD, bytes(size), 3, 1)
        writer.append(RecordKind.COLD_IDS, IDS, 3, 1)
        writer.publish({})
    with pytest.raises(mkv.CorruptionError, match="count and length"):
        joined(RecordReader(str(folder / "a")), is_read=True)


def test_places_that_are_too_many_for_a_record_are_no_part_of_it(folder: Path) -> None:
    with RecordWriter(str(folder / "a"), FileType.SNAPSHOT, IDENTITY) as writer:
        many = np.zeros((2, (8 << 20) + 8), np.uint8)
        with pytest.raises(ValueError, match="16 MiB"):
            cold_rows.append_cold(writer, 3, [many], DIGEST)
        assert writer.records == 0


@pytest.mark.parametrize("column", [0, 8, 20, -1])
def test_who_reads_the_rows_compares_them_with_their_ids_and_sums(
    folder: Path, column: int
) -> None:
    with RecordWriter(str(folder / "a"), FileType.SNAPSHOT, IDENTITY) as writer:
        places = samples.places(3, writer.seed)
        other = places.copy()
        other[1, column] ^= 1
        if column in (0, 8):  # The sums are those of other ids or times than COLD_IDS names.
            other[:, -4:] = sums_of(other, writer.seed)
        heads = np.ascontiguousarray(places[:, :16]).view("<u8")
        ids = cold_rows.DIGEST.pack(*DIGEST) + heads[:, 0].tobytes() + heads[:, 1].tobytes()
        writer.append(RecordKind.COLD, other, 3, 3)
        writer.append(RecordKind.COLD_IDS, ids, 3, 3)
        writer.publish({})
    match = "other ids or times" if column in (0, 8) else "checksum of place 1"
    with pytest.raises(mkv.CorruptionError, match=match):
        joined(RecordReader(str(folder / "a")), is_read=True)


def sums_of(places: Any, seed: int) -> Any:
    sums = [crc32c(place[:-4].tobytes(), seed) for place in places]
    return np.array(sums, "<u4").view(np.uint8).reshape(len(places), 4)


def test_a_snapshot_counts_cold_rows_it_does_not_read(folder: Path) -> None:
    told: list[cold_rows.ColdRows] = []
    reader = SnapshotReader(str(samples.write_snapshot(folder)))
    kinds = [record.kind for record in reader.records(told.append)]
    assert kinds.count(RecordKind.ROWS) == 1
    assert [len(cold.fids) for cold in told] == [5]


@pytest.mark.parametrize("adopt", [None, lambda cold: None])
def test_a_snapshot_whose_end_counts_other_rows_is_refused(folder: Path, adopt: Any) -> None:
    path = str(folder / "a")
    with SnapshotWriter(str(folder), samples.UUID, samples.SEQUENCE, samples.EPOCH, path) as writer:
        writer.meta(
            {
                "uuid": samples.UUID, "sequence": samples.SEQUENCE,
                "lineage": samples.LINEAGE.to_json(),
                "cursor": {}, "tables": [], "created_at": 1, "dense_version": 0,
            }
        )  # fmt: skip
        writer.cold(3, [samples.places(3, writer.seed)], DIGEST)
        writer.rows_written += 1
        writer.publish({"digest": ""})
    with pytest.raises(mkv.CorruptionError, match="counts 4 rows, found 3"):
        list(SnapshotReader(path).records(adopt))
