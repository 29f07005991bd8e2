"""Snapshots: whole or not there; what goes in comes out."""

import os
from pathlib import Path

import numpy as np
import pytest
import samples
from samples import EPOCH, LINEAGE, SEQUENCE, UUID

import monolith_kv as mkv
from monolith_kv.storage import format, snapshot
from monolith_kv.storage.format import FileIdentity, RecordKind
from monolith_kv.storage.snapshot import SnapshotReader, SnapshotWriter

META = {
    "uuid": UUID,
    "sequence": SEQUENCE,
    "lineage": LINEAGE.to_json(),
    "cursor": {},
    "tables": [],
    "created_at": 1,
    "dense_version": 0,
}


def test_what_goes_in_comes_out(folder: Path) -> None:
    reader = SnapshotReader(str(samples.write_snapshot(folder)))
    assert reader.header.identity == FileIdentity(UUID, EPOCH, SEQUENCE)
    assert reader.lineage == LINEAGE
    assert reader.meta["dense_version"] == 2
    assert reader.end == {"rows": 65, "digest": "ab" * 16, "by_table": {"3": [60, 5]}}
    found = list(reader.records())
    assert [(r.kind, r.table, r.count) for r in found] == [
        (RecordKind.ROWS, 3, 60),
        (RecordKind.ROWS, 3, 5),
        (RecordKind.GATE, 3, 0),
        (RecordKind.SIGHTINGS, 3, 0),
        (RecordKind.TOUCHED, 3, 4),
        (RecordKind.DENSE, 0, 2),
    ]
    assert found[0].payload == samples.rows(60).data
    cold = samples.places(5, 0)[:, : samples.ROW_BYTES]
    assert bytes(found[1].payload) == cold.tobytes()
    assert found[2].payload == samples.opaque(50)
    assert found[3].payload == samples.opaque(20)
    assert np.array_equal(np.frombuffer(found[4].payload, "<u8"), samples.fids(4))


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_a_gate_in_pieces_comes_back_as_one(folder: Path, count: int) -> None:
    pieces = [bytes([number]) * (1_000 * number) for number in range(1, count + 1)]
    with SnapshotWriter(str(folder), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta({**META, "uuid": UUID})
        writer.gate(3, iter(pieces))
        path, _ = writer.publish({"digest": ""})
    found = [bytes(record.payload) for record in SnapshotReader(path).records()]
    assert found == ([b"".join(pieces)] if pieces else [])


def test_one_elsewhere_appears_only_when_complete_and_never_over_another(folder: Path) -> None:
    path = str(folder / "mine")
    writer = SnapshotWriter(str(folder / "store"), UUID, SEQUENCE, EPOCH, path)
    writer.meta(META)
    assert not os.path.exists(path)
    other = SnapshotWriter(str(folder / "store"), UUID, SEQUENCE, EPOCH, path)
    other.meta(META)
    assert writer.publish({"digest": ""}) == (path, os.path.getsize(path))
    with pytest.raises(FileExistsError):
        other.publish({"digest": ""})
    other.discard()
    with pytest.raises(FileExistsError):
        SnapshotWriter(str(folder / "store"), UUID, SEQUENCE, EPOCH, path)
    SnapshotReader(path).verify()
    assert os.listdir(folder) == ["mine"]


def test_one_under_the_store_has_its_name_and_may_be_written_again(folder: Path) -> None:
    samples.write_snapshot(folder)
    path = samples.write_snapshot(folder, count=10)
    assert snapshot.names(str(folder)) == [format.snapshot_name(SEQUENCE, EPOCH)] == [path.name]
    assert SnapshotReader(str(path)).end["rows"] == 15


def test_several_at_one_sequence_have_their_own_names(folder: Path) -> None:
    for number in (0, 1):
        with SnapshotWriter(str(folder), UUID, SEQUENCE, EPOCH, number=number) as writer:
            writer.meta(META)
            path, _ = writer.publish({"digest": ""})
        SnapshotReader(path).verify()
    assert len(snapshot.names(str(folder))) == 2


def test_one_of_another_store_in_its_meta_is_refused(folder: Path) -> None:
    with SnapshotWriter(str(folder), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta({**META, "uuid": "ff" * 16})
        path, _ = writer.publish({"digest": ""})
    with pytest.raises(mkv.CorruptionError, match="the header is not"):
        SnapshotReader(path)


def test_one_under_the_name_of_another_is_refused(folder: Path) -> None:
    path = samples.write_snapshot(folder)
    other = path.with_name(format.snapshot_name(SEQUENCE, EPOCH + 1))
    path.rename(other)
    with pytest.raises(mkv.CorruptionError, match="under the name of another"):
        SnapshotReader(str(other))


def test_rows_missing_from_the_count_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SnapshotWriter(str(folder), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta(META)
        writer.rows(1, np.zeros(80, np.uint8), 2)
        writer.rows_written = 3
        path, _ = writer.publish({"digest": ""})
    with pytest.raises(mkv.CorruptionError, match="the end counts 3 rows, found 2"):
        SnapshotReader(path).verify()


def test_a_discarded_snapshot_leaves_nothing(folder: Path) -> None:
    with SnapshotWriter(str(folder), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta(META)
    assert os.listdir(folder / "snapshots") == []
