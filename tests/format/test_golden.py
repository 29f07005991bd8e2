"""Files of every version stay readable, and what is written now stays what it was."""

from pathlib import Path

import golden_files as golden
import numpy as np
import pytest
from golden_files import ARRAYS, EPOCH, FIDS, LINEAGE, SEQUENCE, UUID, VALUES, WRITERS

from monolith_kv._checksum import crc32c
from monolith_kv.replication import target
from monolith_kv.storage import call_log, delta_log, dense, format, manifest, sightings, snapshot
from monolith_kv.storage.delta_log import DeltaReader
from monolith_kv.storage.format import RecordKind
from monolith_kv.storage.snapshot import SnapshotReader

VERSIONS = sorted(path.name for path in golden.FOLDER.iterdir())


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Path:
    """The folder of one version's files."""
    return golden.FOLDER / str(request.param)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "sightings-compressed"])
def test_the_same_content_is_the_same_bytes(name: str, folder: Path) -> None:
    # zstd may pack differently from one version to the next: there only the content is fixed.
    assert golden.written(name, folder) == (golden.FOLDER / golden.VERSION / name).read_bytes()


def placed(path: Path, root: Path, place: str) -> Path:
    """Put a golden file where a store has such a one."""
    target = root / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
    return target


def test_a_manifest_is_read(version: Path, folder: Path) -> None:
    placed(version / "manifest", folder, format.MANIFEST_NAME)
    found = manifest.load(str(folder))
    assert found is not None
    assert (found.uuid, found.lineage, found.sequence) == (UUID, LINEAGE, SEQUENCE)
    assert found.clean
    assert found.cursor == {"offset": 9}
    assert found.deltas[0]["removals"] == 2


def test_a_delta_is_read(version: Path) -> None:
    reader = DeltaReader(str(version / "delta"))
    assert (reader.header.identity.uuid, reader.header.identity.epoch) == (UUID, EPOCH)
    assert reader.meta["calls_from"] == 8
    found = {record.kind: record for record in reader.records()}
    row = np.frombuffer(found[RecordKind.ROWS].payload, golden.ROW)
    assert row["fid"] == FIDS[1]
    assert row["timestamp"] == 1_500_000_000
    assert np.array_equal(row["row"][0], np.float32([1.0, -2.0, 0.1, 0.1]))
    assert np.array_equal(np.frombuffer(found[RecordKind.REMOVED].payload, "<u8"), FIDS[:2])
    assert found[RecordKind.SIGHTINGS].payload == b"opaque"
    assert found[RecordKind.DENSE].count == 2
    assert list(dense.unpack(found[RecordKind.DENSE].payload)) == ["bias", "steps"]


def test_a_snapshot_is_read(version: Path) -> None:
    reader = SnapshotReader(str(version / "snapshot"))
    assert reader.lineage == LINEAGE
    assert reader.end["rows"] == 2
    assert reader.meta["unsealed"] == {"schema": False, "dense": False}
    found = {record.kind: record for record in reader.records()}
    rows = [record for record in reader.records() if record.kind == RecordKind.ROWS]
    cold = golden.cold_place(reader.header.seed)[:, :-4]
    assert [bytes(each.payload) for each in rows] == [golden.one_row().tobytes(), cold.tobytes()]
    assert found[RecordKind.GATE].payload == b"opaque gate"
    assert np.array_equal(np.frombuffer(found[RecordKind.TOUCHED].payload, "<u8"), FIDS[:2])


def test_a_call_log_is_read(version: Path) -> None:
    with call_log.read(str(version / "calls"), must_be_closed=True) as log:
        create, insert, push, upsert, remove, configure, mark, drop = log
    assert isinstance(create, call_log.Create)
    assert create.settings == {"name": "item"}
    assert isinstance(insert, call_log.Insert)
    assert insert.now == 1.5e9
    assert isinstance(push, call_log.Push)
    assert np.array_equal(push.gradients, VALUES[:2])
    assert isinstance(upsert, call_log.Upsert)
    assert np.array_equal(upsert.rows, VALUES[2:])
    assert isinstance(remove, call_log.Remove)
    assert np.array_equal(remove.fids, FIDS[:1])
    assert isinstance(configure, call_log.Configure)
    assert configure.settings == {"ttl_default": 60}
    assert isinstance(mark, call_log.Mark)
    assert mark.settings == {"snapshot": "00" * 16}
    assert isinstance(drop, call_log.Drop)
    assert drop.table == 3


@pytest.mark.parametrize(("name", "times"), [("sightings", 1), ("sightings-compressed", 100)])
def test_sightings_are_read(version: Path, folder: Path, name: str, times: int) -> None:
    file = format.sightings_name(SEQUENCE, EPOCH)
    placed(version / name, folder, f"{format.SIGHTINGS_FOLDER}/{file}")
    assert sightings.load(str(folder), file) == {3: b"opaque" * times}


def test_dense_weights_are_read(version: Path, folder: Path) -> None:
    path = placed(version / "dense", folder, f"{format.DENSE_FOLDER}/{format.dense_name(2)}")
    data = path.read_bytes()
    entry = {"name": path.name, "bytes": len(data), "crc32c": crc32c(data)}
    found = dense.unpack(dense.load(str(folder), entry))
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_a_target_is_read(version: Path, folder: Path) -> None:
    placed(version / "target", folder, target.PUBLISHED_NAME)
    found = target.read_target(str(folder))
    assert found is not None
    assert (found.uuid, found.lineage, found.sequence) == (UUID, LINEAGE, SEQUENCE)
    [delta], [snapshot_entry] = found.deltas, found.snapshots
    assert (delta.sequence, delta.removals, delta.digest) == (SEQUENCE, 2, "00" * 16)
    assert (snapshot_entry.rows, snapshot_entry.bytes, snapshot_entry.is_snapshot) == (3, 900, True)


def test_the_names_of_version_1_hold() -> None:
    assert format.MANIFEST_NAME == "MANIFEST"
    assert delta_log.path_of("s", format.delta_name(7, 2)) == (
        "s/deltas/00000000000000000007-000002.delta"
    )
    assert snapshot.path_of("s", format.snapshot_name(7, 2)) == (
        "s/snapshots/00000000000000000007-000002.snapshot"
    )
    assert call_log.path_of("s", 7) == "s/calls/00000000000000000007.calls"
    assert sightings.path_of("s", format.sightings_name(7, 2)) == (
        "s/sightings/00000000000000000007-000002.sightings"
    )
    assert dense.path_of("s", format.dense_name(7)) == "s/dense/00000000000000000007.safetensors"
