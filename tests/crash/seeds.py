"""Write the inputs that fuzzing begins with: files of a store of two tables, and their payloads.

PYTHONPATH=tests python -m crash.seeds   adds what is not there yet to tests/crash/corpus
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from crash.fuzz import CORPUS
from crash.parsers import SCHEMAS, row_file
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.replication import Publisher

IDS = np.arange(1, 7, dtype=np.uint64) << np.uint64(40)


def make_store(folder: Path) -> mkv.Store:
    """Make a store whose tables are those of SCHEMAS, with something in every kind of file."""
    store = mkv.open(
        folder, durability="batch", delta_interval=None, clock=ManualClock(1_500_000_000.0)
    )
    item, user = SCHEMAS[1], SCHEMAS[2]
    table = store.create_table("item", 2, admission=item.admission, ttl=60)
    other = store.create_table("user", user.slices)
    store.dense.publish({"w": np.eye(2), "steps": np.array(7)})
    table.upsert(IDS, np.ones((6, 2), np.float32))
    other.pull(IDS[:3])
    table.pull(IDS[:2] + np.uint64(1))
    store.seal(cursor={"offset": 1, "file": "a"})
    table.remove(IDS[:2])
    other.push(IDS[:1], np.ones((1, 3), np.float32))
    table.pull(IDS[:2] + np.uint64(1))
    store.snapshot()
    store.seal()
    table.pull(IDS[:3] + np.uint64(2))
    store.seal()
    store.create_table("late", 1)
    table.push(IDS[2:], np.ones((4, 2), np.float32))
    other.upsert(IDS[:2], np.ones((2, 3), np.float32))
    table.pull(IDS[:2] + np.uint64(1))
    other.remove(IDS[:2])
    store.drop_table("late")
    store.snapshot(folder / "elsewhere")
    table.configure(ttl="2m")
    return store


def snapshot_with_cold_rows(folder: Path) -> bytes:
    """Make a snapshot of a store of the same tables whose rows do not all fit into memory."""
    with mkv.open(
        folder, durability="none", delta_interval=None, memory_limit="1KiB",
        clock=ManualClock(1_500_000_000.0),
    ) as store:  # fmt: skip
        item, user = SCHEMAS[1], SCHEMAS[2]
        table = store.create_table("item", 2, admission=item.admission, ttl=60)
        other = store.create_table("user", user.slices)
        table.upsert(np.arange(100, dtype=np.uint64), np.ones((100, 2), np.float32))
        other.upsert(IDS, np.ones((6, 3), np.float32))
        return Path(store.snapshot(folder / "cold").path).read_bytes()


def seeds(root: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield target, name and content of each input."""
    with make_store(root / "store") as store:
        state = store._state
        Publisher(store.path, root / "target").run_once()
        yield "manifest", "open", (root / "store" / "MANIFEST").read_bytes()
        for pattern, target in _FILES.items():
            for path in sorted((root / "store").rglob(pattern)):
                yield target, path.name.lstrip("0").partition(".")[0], path.read_bytes()
        gate = state.tables["item"].core.gate_state()
        yield "gate", "state", b"\0" + gate
        for number, piece in enumerate(state.tables["item"].pending_sightings):
            yield "sighted", f"piece-{number}", piece
        records, _ = state.tables["item"].core.pack(IDS)
        yield "rows", "rows", records.tobytes()
        lineage = state.manifest.lineage.begin(after=2).begin(after=7)
        yield "lineage", "three", json.dumps({"lineage": lineage.to_json()}).encode()
    yield "manifest", "closed", (root / "store" / "MANIFEST").read_bytes()
    yield "overflow", "rows", row_file()
    cold = snapshot_with_cold_rows(root / "cold")
    yield "snapshot", "cold", cold
    yield "adopted", "cold", cold
    yield "target", "published", (root / "target" / "PUBLISHED").read_bytes()
    for schema in SCHEMAS.values():
        yield "schema", schema.name, json.dumps(schema.to_json()).encode()
    for name, content in (("text", b"opaque" * 100), ("empty", b""), ("zeros", bytes(5_000))):
        yield "zstd", name, zstandard.ZstdCompressor(level=1).compress(content)


_FILES = {
    "*.delta": "delta",
    "*.snapshot": "snapshot",
    "elsewhere": "snapshot",
    "*.calls": "calls",
    "*.sightings": "sightings",
    "*.safetensors": "dense",
}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for target, name, content in seeds(Path(folder)):
            path = CORPUS / target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)
