"""A store larger than its memory, whose rows are told by their values, and its snapshots."""

from pathlib import Path
from typing import Any

import numpy as np
from checks import u64

import monolith_kv as mkv
from monolith_kv._checksum import crc32c_each
from monolith_kv.storage.format import FileType, RecordKind
from monolith_kv.storage.record_file import RecordReader, RecordWriter

DIM = 16
IDS = u64(range(4_000))
LIMIT = "256KiB"  # Of some 600 KiB of rows.


def fill(path: Path, options: dict[str, Any], **more: Any) -> mkv.Store:
    """Make a store with all ids, sealed."""
    store = mkv.open(path, memory_limit=LIMIT, **{**options, **more})
    table = store.create_table("t", DIM, optimizer=mkv.Adagrad(), ttl="10d")
    table.upsert(IDS, rows_of(IDS, 0.0))
    store.seal()
    return store


def rows_of(ids: Any, value: float) -> Any:
    return ids.astype(np.float32)[:, None] + np.linspace(0, 1, DIM, dtype=np.float32) + value


def tier_of(store: mkv.Store) -> Any:
    return store._state.overflow


def parts_of(store: mkv.Store) -> list[Any]:
    return [part for found in tier_of(store)._tables.values() for part in found.parts.values()]


def check(store: mkv.Store, ids: Any = IDS, value: float = 0.0) -> None:
    np.testing.assert_array_equal(store.table("t").lookup(ids), rows_of(ids, value))
    assert store._state.tables["t"].core.check() == []


def sizes_of(kind: RecordKind, path: str) -> list[int]:
    return [len(r.payload) for r in RecordReader(path) if r.kind == kind]


def write_anew(path: Path, change: Any, **end: Any) -> None:
    """Write a snapshot again, with checksums that are good, of places that are not, or END."""
    reader = RecordReader(str(path))
    with RecordWriter(str(path), FileType.SNAPSHOT, reader.header.identity, replace=True) as writer:
        for record in reader:
            payload: Any = record.payload
            if record.kind == RecordKind.COLD:
                places = np.frombuffer(payload, np.uint8).reshape(record.count, -1)
                rows = np.ascontiguousarray(change(places[:, :-4]))
                sums = crc32c_each(rows, rows.shape[1], writer.seed)
                payload = np.hstack([rows, sums.view(np.uint8).reshape(len(rows), 4)])
            writer.append(record.kind, payload, record.table, record.count)
        writer.publish({**reader.meta, **end})


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
