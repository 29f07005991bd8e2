"""Deltas: what goes in comes out, counted; nothing under a wrong name or number."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
from samples import EPOCH, LINEAGE, ROW_BYTES, SEQUENCE, UUID

import monolith_kv as mkv
from monolith_kv.storage import delta_log, format
from monolith_kv.storage.delta_log import DeltaReader, DeltaWriter
from monolith_kv.storage.format import RECORD_BYTES_MAX, FileIdentity, FileType, RecordKind
from monolith_kv.storage.framing import encode_json
from monolith_kv.storage.record_file import RecordWriter

META = {
    "sequence": SEQUENCE,
    "lineage": LINEAGE.to_json(),
    "cursor": None,
    "tables": [],
    "dropped": [],
    "sealed_at": 1.0,
    "calls_from": 1,
}


def begin(folder: Path, **changes: Any) -> DeltaWriter:
    writer = DeltaWriter(str(folder), UUID, SEQUENCE, EPOCH)
    writer.meta({**META, **changes})
    return writer


def test_what_goes_in_comes_out(folder: Path) -> None:
    reader = DeltaReader(str(samples.write_delta(folder)))
    assert reader.header.identity == FileIdentity(UUID, EPOCH, SEQUENCE)
    assert reader.lineage == LINEAGE
    assert reader.meta["cursor"] == {"offset": 5}
    assert reader.end == {"rows": 60, "removals": 5, "digest": "ab" * 16}
    found = list(reader.records())
    assert [(r.kind, r.table, r.count) for r in found] == [
        (RecordKind.ROWS, 3, 60),
        (RecordKind.REMOVED, 3, 5),
        (RecordKind.SIGHTINGS, 3, 0),
        (RecordKind.DENSE, 0, 2),
    ]
    assert found[0].payload == samples.rows(60).data
    assert np.array_equal(np.frombuffer(found[1].payload, "<u8"), samples.fids(5))
    assert found[2].payload == samples.opaque(50)
    assert found[3].payload == samples.DENSE


def test_publish_tells_name_and_bytes(folder: Path) -> None:
    writer = begin(folder)
    name, size = writer.publish({"digest": ""})
    assert name == format.delta_name(SEQUENCE, EPOCH)
    assert delta_log.names(str(folder)) == [name]
    assert os.path.getsize(delta_log.path_of(str(folder), name)) == size == writer.size


def test_rows_are_cut_between_rows(folder: Path) -> None:
    size = 4096 * 3 + 8
    count = RECORD_BYTES_MAX // size + 5
    records = np.zeros((count, size), np.uint8)
    records[:, 0] = np.arange(count)
    with begin(folder) as writer:
        writer.rows(1, records, count)
        name, _ = writer.publish({"digest": ""})
    found = list(DeltaReader(delta_log.path_of(str(folder), name)).records())
    assert [record.count for record in found] == [count - 5, 5]
    assert all(len(record.payload) <= RECORD_BYTES_MAX for record in found)
    joined = np.concatenate([np.frombuffer(r.payload, np.uint8).reshape(-1, size) for r in found])
    assert np.array_equal(joined, records)


def test_many_removals_are_cut_into_records(folder: Path) -> None:
    fids = np.arange(RECORD_BYTES_MAX // 8 + 3, dtype=np.uint64)
    with begin(folder) as writer:
        writer.removed(1, fids)
        name, _ = writer.publish({"digest": ""})
    reader = DeltaReader(delta_log.path_of(str(folder), name))
    found = [np.frombuffer(record.payload, "<u8") for record in reader.records()]
    assert [len(part) for part in found] == [RECORD_BYTES_MAX // 8, 3]
    assert np.array_equal(np.concatenate(found), fids)
    assert reader.end["removals"] == len(fids)


def test_nothing_is_written_for_no_rows_and_no_removals(folder: Path) -> None:
    with begin(folder) as writer:
        writer.rows(1, np.empty(0, np.uint8), 0)
        writer.removed(1, np.empty(0, np.uint64))
        name, _ = writer.publish({"digest": ""})
    assert not list(DeltaReader(delta_log.path_of(str(folder), name)).records())


def test_meta_is_the_first_record_and_there_once(folder: Path) -> None:
    with begin(folder) as writer, pytest.raises(ValueError, match="must be the first"):
        writer.meta(META)
    with DeltaWriter(str(folder), UUID, SEQUENCE, EPOCH) as writer:
        writer.removed(1, samples.fids(1))
        name, _ = writer.publish({"digest": ""})
    with pytest.raises(mkv.CorruptionError, match="first record is not META"):
        DeltaReader(delta_log.path_of(str(folder), name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": SEQUENCE + 1}, "sequence 8 of epoch 2 under a header"),
        ({"lineage": LINEAGE.begin(6).to_json()}, "sequence 7 of epoch 3 under a header"),
        ({"lineage": [[1]]}, "cannot be read"),
        ({"tables": None}, "tables is None"),
        ({"includes": "all"}, "includes is 'all'"),
        ({"sealed_at": True}, "sealed_at is True"),
    ],
)
def test_meta_has_to_fit_the_header(folder: Path, changes: Any, message: str) -> None:
    with begin(folder, **changes) as writer:
        name, _ = writer.publish({"digest": ""})
    with pytest.raises(mkv.CorruptionError, match=message):
        DeltaReader(delta_log.path_of(str(folder), name))


def test_a_delta_under_the_name_of_another_is_refused(folder: Path) -> None:
    path = samples.write_delta(folder)
    other = path.with_name(format.delta_name(SEQUENCE + 1, EPOCH))
    path.rename(other)
    with pytest.raises(mkv.CorruptionError, match="under the name of another"):
        DeltaReader(str(other))
    other.rename(folder / "received")
    DeltaReader(str(folder / "received")).verify()


def forge(folder: Path, kind: int, payload: bytes, count: int, **end: Any) -> str:
    """Write a delta whose checksums are good and whose content is as given."""
    path = str(folder / "forged")
    identity = FileIdentity(UUID, EPOCH, SEQUENCE)
    with RecordWriter(path, FileType.DELTA, identity, replace=True) as writer:
        writer.append(RecordKind.META, encode_json(META))
        writer.append(kind, payload, 1, count)
        writer.publish({"rows": 0, "removals": 0, "digest": "", **end})
    return path


@pytest.mark.parametrize(
    ("kind", "payload", "count", "end"),
    [
        (RecordKind.ROWS, bytes(100), 3, {"rows": 3}),
        (RecordKind.ROWS, bytes(100), 0, {}),
        (RecordKind.ROWS, b"", 1, {"rows": 1}),
        (RecordKind.ROWS, bytes(100), 2**60, {"rows": 2**60}),
        (RecordKind.ROWS, bytes(ROW_BYTES), 1, {"rows": 2}),
        (RecordKind.REMOVED, bytes(9), 1, {"removals": 1}),
        (RecordKind.REMOVED, bytes(8), 2, {"removals": 2}),
        (RecordKind.REMOVED, bytes(8), 1, {}),
        (RecordKind.GATE, b"x", 0, {}),
        (RecordKind.META, encode_json(META), 0, {}),
    ],
)
def test_counts_that_do_not_fit_are_refused(
    folder: Path, kind: int, payload: bytes, count: int, end: Any
) -> None:
    with pytest.raises(mkv.CorruptionError):
        DeltaReader(forge(folder, kind, payload, count, **end)).verify()


def test_rows_of_unequal_size_are_an_error_of_the_caller(folder: Path) -> None:
    with begin(folder) as writer, pytest.raises(ValueError, match="are not 3 equal records"):
        writer.rows(1, np.zeros(100, np.uint8), 3)


def test_a_discarded_delta_leaves_nothing(folder: Path) -> None:
    begin(folder).discard()
    assert os.listdir(folder / "deltas") == []


def test_sealing_again_after_a_failure_replaces_the_file(folder: Path) -> None:
    samples.write_delta(folder)
    path = samples.write_delta(folder, count=10)
    assert DeltaReader(str(path)).end["rows"] == 10
