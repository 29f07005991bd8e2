"""A store, a target and a replica in one folder, with short words for what tests do to them."""

from pathlib import Path
from typing import Any

import numpy as np
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.replication import Followed, Follower, Published, Publisher

DIM = 4


class World:
    """Folders of one test and the options that all its stores have."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.folder = folder
        self.clock = clock
        self.store = folder / "store"
        self.target = folder / "target"
        self.replica = folder / "replica"
        self.options: dict[str, Any] = {"clock": clock, "delta_interval": None}

    def open(self, path: Path | None = None, mode: Any = "rw", **more: Any) -> mkv.Store:
        return mkv.open(path or self.store, mode, **{**self.options, **more})

    def push(self, store: Path | None = None, target: Path | None = None) -> Published:
        return Publisher(store or self.store, target or self.target).run_once()

    def follower(self, source: Path | None = None) -> Follower:
        return Follower(source or self.target, self.replica, **self.options)

    def follow(self, source: Path | None = None, *, force: bool = False) -> Followed:
        with self.follower(source) as follower:
            return follower.run_once(force=force)

    def digest(self, path: Path | None = None) -> str:
        with self.open(path or self.replica, "r") as store:
            return store.digest()

    def rows(self, path: Path | None = None) -> int:
        with self.open(path or self.replica, "r") as store:
            return sum(len(table) for table in store.tables.values())


def write(store: mkv.Store, first: int, count: int, value: float = 1.0) -> None:
    """Set the rows of `count` ids from `first` on."""
    table = store.create_table("item", dim=DIM, exist_ok=True)
    ids = np.arange(first, first + count, dtype=np.uint64)
    rows = np.full((count, DIM), value, np.float32) + np.arange(count, dtype=np.float32)[:, None]
    table.upsert(ids, rows)


def write_deltas(store: mkv.Store, count: int, rows: int = 10) -> None:
    """Seal `count` deltas of `rows` new rows each."""
    for _ in range(count):
        write(store, 1000 * (store.sequence + 1), rows)
        store.seal()


def flip(path: Path, offset: int = -40) -> None:
    """Damage one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def only(folder: Path, pattern: str) -> Path:
    """Return the one file of that pattern."""
    [found] = folder.rglob(pattern)
    return found


def delta_files(folder: Path) -> list[Path]:
    """Return the deltas of a store or target, in order."""
    return sorted((folder / "deltas").glob("*.delta"))


def snapshot_files(folder: Path) -> list[Path]:
    """Return the snapshots of a store or target, by name."""
    return sorted((folder / "snapshots").glob("*.snapshot"))


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder but LOCK and MANIFEST, which every opening writes anew."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "MANIFEST")
    }


def grown(world: World, deltas: int = 3) -> None:
    """Bring a replica to what a store has sealed, its snapshot last."""
    with world.open() as store:
        write_deltas(store, deltas)
        store.snapshot()
    world.push()
    world.follow()
