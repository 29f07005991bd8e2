"""Small files of every type, for tests of the storage layer: made by it, read back by it."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monolith_kv._checksum import crc32c_each
from monolith_kv.lineage import Epoch, Lineage
from monolith_kv.storage import (
    call_log,
    delta_log,
    dense,
    format,
    manifest,
    sightings,
    snapshot,
)
from monolith_kv.storage.framing import Part, read_part

UUID = "00112233445566778899aabbccddeeff"
LINEAGE = Lineage((Epoch(1, 77, 0), Epoch(2, 99, 4)))
SEQUENCE, EPOCH = 7, 2
SCHEMA = {"id": 3, "name": "item", "slices": [{"name": "", "dim": 4}]}
ROW_BYTES = 16 + 4 * 8
DENSE = dense.pack({"bias": np.arange(3, dtype=np.float32), "w": np.eye(2)})


def fids(count: int) -> Any:
    return (np.arange(count, dtype=np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)


def rows(count: int) -> Any:
    """Row records without a zero sector, the same in every run and on every machine."""
    digest = b"".join(hashlib.sha256(n.to_bytes(8, "little")).digest() for n in range(count * 2))
    return np.frombuffer(digest[: count * ROW_BYTES], np.uint8)


def places(count: int, seed: int) -> Any:
    """Rows that are not among the others, each with its checksum behind it."""
    records = rows(100 + count).reshape(-1, ROW_BYTES)[100:]
    sums = crc32c_each(records, ROW_BYTES, seed).view(np.uint8).reshape(count, -1)
    return np.concatenate([records, sums], axis=1)


def opaque(size: int) -> bytes:
    """Bytes that no compression makes smaller, whatever its version."""
    return hashlib.shake_256(b"opaque").digest(size)


def write_manifest(root: Path) -> Path:
    entry = {"sequence": SEQUENCE, "epoch": EPOCH, "rows": 10, "bytes": 999}
    deltas = [
        {**entry, "name": format.delta_name(SEQUENCE, EPOCH), "removals": 1, "sealed_at": 12.5}
    ]
    snapshots = [
        {
            **entry,
            "name": format.snapshot_name(SEQUENCE, EPOCH),
            "created_at": 13.0,
            "lineage": LINEAGE.to_json(),
        }
    ]
    manifest.store(
        str(root),
        manifest.Manifest(
            UUID, LINEAGE, SEQUENCE, False, "rw", {"offset": 5}, [SCHEMA], 4, snapshots, deltas
        ),
    )
    return root / format.MANIFEST_NAME


def write_delta(root: Path, count: int = 60) -> Path:
    with delta_log.DeltaWriter(str(root), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta(
            {
                "sequence": SEQUENCE,
                "lineage": LINEAGE.to_json(),
                "cursor": {"offset": 5},
                "tables": [SCHEMA],
                "dropped": [],
                "sealed_at": 12.5,
                "calls_from": 3,
            }
        )
        writer.rows(3, rows(count), count)
        writer.removed(3, fids(5))
        writer.sightings(3, opaque(50))
        writer.dense(2, DENSE)
        name, _ = writer.publish({"digest": "ab" * 16})
    return Path(delta_log.path_of(str(root), name))


def write_snapshot(root: Path, count: int = 60) -> Path:
    with snapshot.SnapshotWriter(str(root), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta(
            {
                "uuid": UUID,
                "sequence": SEQUENCE,
                "lineage": LINEAGE.to_json(),
                "cursor": {},
                "tables": [SCHEMA],
                "created_at": 13.0,
                "dense_version": 2,
            }
        )
        writer.rows(3, rows(count), count)
        writer.cold(3, [places(5, writer.seed)], (1, 2**64 - 1))
        writer.gate(3, [opaque(50)])
        writer.sightings(3, opaque(20))
        writer.touched(3, fids(4))
        writer.dense(2, DENSE)
        path, _ = writer.publish({"digest": "ab" * 16})
    return Path(path)


def write_calls(root: Path, *, clean: bool = False, count: int = 20) -> Path:
    log = call_log.CallLogWriter(str(root), UUID, 9, EPOCH)
    values = np.frombuffer(opaque(count * 16), "<f4").reshape(count, 4)
    log.create(3, {"name": "item"})
    log.insert(3, 1.5, fids(count))
    log.push(3, 2.5, fids(count), values)
    log.upsert(3, 3.5, fids(count), values)
    log.remove(3, fids(3))
    log.configure(3, {"ttl": 60})
    log.push(3, 4.5, fids(count), values)
    log.drop(3)
    log.insert(4, 5.5, fids(2))
    log.close(clean)
    return Path(log.path)


def write_sightings(root: Path) -> Path:
    name = sightings.store(str(root), UUID, SEQUENCE, EPOCH, {3: opaque(900), 4: opaque(40)})
    return Path(sightings.path_of(str(root), name))


def read_calls(path: Path, **options: Any) -> list[Any]:
    with call_log.read(str(path), **options) as log:
        return list(log)


class Sample(NamedTuple):
    """One type of file: how a small one is written, and read wholly."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]


def _load_sightings(path: Path) -> object:
    return sightings.load(str(path.parent.parent), path.name)


SAMPLES = {
    "manifest": Sample(write_manifest, lambda path: manifest.load(str(path.parent))),
    "delta": Sample(write_delta, lambda path: delta_log.DeltaReader(str(path)).verify()),
    "snapshot": Sample(write_snapshot, lambda path: snapshot.SnapshotReader(str(path)).verify()),
    "sightings": Sample(write_sightings, _load_sightings),
    "calls": Sample(
        lambda root: write_calls(root, clean=True),
        lambda path: read_calls(path, must_be_closed=True),
    ),
}


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def view(self, offset: int, size: int) -> memoryview:
        return self._data[offset : offset + size]


def parts(data: bytes) -> Iterator[Part]:
    """Yield the physical records of a whole file."""
    header = format.unpack_header(data[: format.HEADER_BYTES], "sample")
    offset, previous = format.HEADER_BYTES, header.crc
    while offset < len(data):
        part = read_part(_Bytes(data), offset, len(data), header.seed, previous)
        yield part
        offset, previous = part.end, part.header.crc
