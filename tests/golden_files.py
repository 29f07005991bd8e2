"""Golden files: tiny ones of every type and version, whose bytes never change.

Run as a script, this adds the files of the present version where there are none yet, and prints the
tables of the format pages. A byte that differs afterwards is a new version, not a new golden file.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from samples import parts

from monolith_kv._table import Barrier, TableCore
from monolith_kv.lineage import Epoch, Lineage
from monolith_kv.replication import target
from monolith_kv.storage import (
    call_log,
    delta_log,
    dense,
    format,
    manifest,
    sightings,
    snapshot,
)
from monolith_kv.storage.format import RECORD_HEADER_BYTES, RecordKind

FOLDER = Path(__file__).parent / "format" / "golden"
VERSION = f"v{format.FORMAT_MAJOR}"
SALT = bytes(range(8))
UUID = "00112233445566778899aabbccddeeff"
LINEAGE = Lineage((Epoch(1, 77, 0), Epoch(2, 99, 4)))
SEQUENCE, EPOCH = 5, 2
FIDS = np.array([0, 0x0003_0000_0000_002A, 2**64 - 1], np.uint64)
VALUES = np.array([[1.0, -2.0], [0.5, 0.0], [0.25, 8.0]], np.float32)
ROW = np.dtype([("fid", "<u8"), ("timestamp", "<i8"), ("row", "<f4", (4,))])
ARRAYS = {"bias": np.array([1.5, -1.0], np.float32), "steps": np.array(7, np.int64)}
SCHEMA = {"id": 3, "name": "item"}
CORE_SLICES = [(2, 2, (0.1, 0.1, 0.0), 0, 0.0, 0.0, 0)]


def one_row() -> Any:
    row = np.zeros(1, ROW)
    row["fid"], row["timestamp"], row["row"] = FIDS[1], 1_500_000_000, [1.0, -2.0, 0.1, 0.1]
    return row.view(np.uint8)


def cold_place(seed: int) -> Any:
    row = one_row()
    row[0] += 1
    return TableCore(Barrier(), CORE_SLICES, 1).checksummed(row, seed)


def write_manifest(root: Path) -> Path:
    entry = {"sequence": SEQUENCE, "epoch": EPOCH, "rows": 1, "bytes": 800}
    state = manifest.Manifest(UUID, LINEAGE, SEQUENCE, True, "rw", {"offset": 9}, [SCHEMA], 4)
    name = format.delta_name(SEQUENCE, EPOCH)
    state.deltas = [{**entry, "name": name, "removals": 2, "sealed_at": 1.5e9}]
    manifest.store(str(root), state)
    return root / format.MANIFEST_NAME


def write_delta(root: Path) -> Path:
    with delta_log.DeltaWriter(str(root), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta(
            {
                "sequence": SEQUENCE,
                "lineage": LINEAGE.to_json(),
                "cursor": {"offset": 9},
                "tables": [SCHEMA],
                "dropped": [],
                "sealed_at": 1.5e9,
                "calls_from": 8,
                "includes": [],
            }
        )
        writer.rows(3, one_row(), 1)
        writer.removed(3, FIDS[:2])
        writer.sightings(3, b"opaque")
        writer.dense(2, dense.pack(ARRAYS))
        name, _ = writer.publish({"digest": "00" * 16})
    return Path(delta_log.path_of(str(root), name))


def write_snapshot(root: Path) -> Path:
    with snapshot.SnapshotWriter(str(root), UUID, SEQUENCE, EPOCH) as writer:
        writer.meta(
            {
                "uuid": UUID,
                "sequence": SEQUENCE,
                "lineage": LINEAGE.to_json(),
                "cursor": {"offset": 9},
                "tables": [SCHEMA],
                "created_at": 1.5e9,
                "dense_version": 0,
                "calls_from": 8,
                "includes": ["00" * 16],
                "unsealed": {"schema": False, "dense": False},
            }
        )
        writer.rows(3, one_row(), 1)
        writer.cold(3, [cold_place(writer.seed)], (5, 6))
        writer.gate(3, [b"opaque gate"])
        writer.sightings(3, b"opaque")
        writer.touched(3, FIDS[:2])
        path, _ = writer.publish({"digest": "00" * 16})
    return Path(path)


def write_calls(root: Path) -> Path:
    log = call_log.CallLogWriter(str(root), UUID, 8, EPOCH)
    log.create(3, {"name": "item"})
    log.insert(3, 1.5e9, FIDS[:1])
    log.push(3, 1.5e9 + 0.25, FIDS[:2], VALUES[:2])
    log.upsert(3, 1.5e9 + 0.5, FIDS[2:], VALUES[2:])
    log.remove(3, FIDS[:1])
    log.configure(3, {"ttl_default": 60})
    log.sync()
    log.mark({"snapshot": "00" * 16})
    log.drop(3)
    log.close()
    return Path(log.path)


def write_sightings(root: Path) -> Path:
    name = sightings.store(str(root), UUID, SEQUENCE, EPOCH, {3: b"opaque"})
    return Path(sightings.path_of(str(root), name))


def write_compressed(root: Path) -> Path:
    name = sightings.store(str(root), UUID, SEQUENCE, EPOCH, {3: b"opaque" * 100})
    return Path(sightings.path_of(str(root), name))


def write_dense(root: Path) -> Path:
    entry = dense.store(str(root), 2, dense.pack(ARRAYS))
    return Path(dense.path_of(str(root), entry["name"]))


def write_target(root: Path) -> Path:
    delta = format.delta_name(SEQUENCE, EPOCH)
    snapshot_name = format.snapshot_name(4, 1)
    target.write_target(
        target.Catalogue(
            "target",
            str(root),
            UUID,
            LINEAGE,
            SEQUENCE,
            (target.Entry(delta, SEQUENCE, EPOCH, 1, 800, 1.5e9, 2, "00" * 16, 7),),
            (target.Entry(snapshot_name, 4, 1, 3, 900, 1.5e9, 0, "11" * 16, 8),),
        )
    )
    return root / target.PUBLISHED_NAME


WRITERS: dict[str, Callable[[Path], Path]] = {
    "manifest": write_manifest,
    "delta": write_delta,
    "snapshot": write_snapshot,
    "calls": write_calls,
    "sightings": write_sightings,
    "sightings-compressed": write_compressed,
    "dense": write_dense,
    "target": write_target,
}


def written(name: str, root: Path) -> bytes:
    """What this version writes, with the one salt that golden files have."""
    with mock.patch.object(format, "random_salt", return_value=SALT):
        return WRITERS[name](root).read_bytes()


# --- tables of the format pages ------------------------------------------------------------


def shown(data: bytes | memoryview) -> str:
    """Bytes in a table: JSON as it is, anything else in hexadecimal."""
    data = bytes(data)
    if data[:1] == b"{":
        return f"`{data.decode()}`"
    return f"`{data.hex(' ')}`" if data else ""


def field_rows(data: bytes) -> Iterator[str]:
    """A file byte by byte: a row for each field."""
    for name, offset, size in format.HEADER_FIELDS:
        yield f"| {offset} | {shown(data[offset : offset + size])} | {name} |"
    for part in parts(data):
        for name, offset, size in format.RECORD_FIELDS:
            at = part.offset + offset
            yield f"| {at} | {shown(data[at : at + size])} | {name} |"
        at = part.offset + RECORD_HEADER_BYTES
        yield f"| {at} | {shown(part.payload)} | payload |"
        at += len(part.payload)
        if part.end > at:
            yield f"| {at} | {shown(data[at : part.end])} | padding |"


def record_rows(data: bytes) -> Iterator[str]:
    """A file record by record: offset, kind, table, count, payload."""
    for part in parts(data):
        header = part.header
        kind = RecordKind(header.kind).name
        cells = (part.offset, kind, header.table, header.count, shown(part.payload))
        yield "| " + " | ".join(map(str, cells)) + " |"


def dense_rows(data: bytes) -> Iterator[str]:
    """A safetensors file: its three parts."""
    begin = dense.LENGTH.size + dense.LENGTH.unpack(data[: dense.LENGTH.size])[0]
    yield f"| 0 | {shown(data[: dense.LENGTH.size])} | length of the header |"
    yield f"| 8 | {shown(data[dense.LENGTH.size : begin].rstrip())} | header, then spaces |"
    yield f"| {begin} | {shown(data[begin:])} | data |"


def overflow_rows() -> Iterator[str]:
    """A row file with one record."""
    identity = format.FileIdentity(format.NO_UUID, 0, 1)
    header = format.pack_header(format.FileType.ROWS, identity, SALT)
    core = TableCore(Barrier(), CORE_SLICES, 1)
    seed = format.unpack_header(header, "example").seed
    place = core.checksummed(one_row(), seed).tobytes()
    for name, offset, size in format.HEADER_FIELDS:
        yield f"| {offset} | {shown(header[offset : offset + size])} | {name} |"
    yield f"| 64 | {shown(place[:-4])} | record |"
    yield f"| {64 + len(place) - 4} | {shown(place[-4:])} | crc32c |"


def example(name: str) -> list[str]:
    """The rows of the worked example on a format page."""
    if name == "overflow":
        return list(overflow_rows())
    data = (FOLDER / VERSION / name).read_bytes()
    rows = {"sightings": field_rows, "dense": dense_rows}.get(name, record_rows)
    return list(rows(data))


if __name__ == "__main__":
    for name in WRITERS:
        path = FOLDER / VERSION / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.TemporaryDirectory() as root:
                path.write_bytes(written(name, Path(root)))
    for name in (
        "sightings",
        "manifest",
        "delta",
        "snapshot",
        "calls",
        "overflow",
        "dense",
        "target",
    ):
        print(f"\n{name}", *example(name), sep="\n")
