"""Writing: upsert, insertion, seal, apply, snapshot, restore, beside the least that each can cost.

The yardsticks are plain memory and files: a[i] = rows for what changes rows, writing and flushing
as many bytes for what makes a file. Stores and files are in memory where there is such a place: a
disk's mood is not what is measured. These are figures, not goals.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from monolith_kv_tools.bench.harness import (
    FAST_FOLDER,
    Batches,
    Compared,
    compare,
    report,
    scrambled_ids,
    uniform_positions,
)
from monolith_kv_tools.bench.tables import DIM, fill, make_rows
from numpy.typing import NDArray

import monolith_kv as mkv

BATCH = 8192
TOUCHED = 16 * BATCH
FEW_ROUNDS = 7  # For what takes a tenth of a second and more.


def run(rows: int, rounds: int) -> bool:
    """Measure and print; there is nothing to miss."""
    dense, ids = make_rows(rows)
    with (
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
        mkv.open(f"{folder}/store", durability="none", delta_interval=None) as store,
        mkv.open(f"{folder}/replica", "replica") as replica,
    ):
        table = fill(store, ids, dense)
        calls = [
            upsert(table, dense, ids, rounds),
            insert(table, rows, rounds),
        ]
        report(
            f"changing rows: {rows:,} rows of {DIM}, batches of {BATCH:,}; yardstick a[i] = rows",
            calls,
            units=BATCH,
        )
        first = store.seal()
        assert first is not None
        replica.apply(first)
        sealed = [
            seal(store, table, ids, folder),
            apply(store, replica, table, ids, folder),
        ]
        title = f"deltas of about {TOUCHED:,} rows; yardstick writing and flushing as many bytes"
        report(title, sealed, units=TOUCHED, unit="rows")
        whole = [snapshot(store, folder), restore(store, folder)]
        title = f"all {len(table):,} rows; yardstick writing and flushing, or reading, the bytes"
        report(title, whole, units=len(table), unit="rows")
    return True


def upsert(
    table: mkv.Table, dense: NDArray[np.float32], ids: NDArray[np.uint64], rounds: int
) -> Compared:
    """Overwrite rows that are there."""
    rng = np.random.default_rng(3)
    rows = rng.random((BATCH, DIM), np.float32)
    batches = Batches(uniform_positions(rng, len(ids), BATCH * 32), ids, BATCH)

    def work() -> None:
        table.upsert(batches.ids, rows)

    def yardstick() -> None:
        dense[batches.positions] = rows

    return compare("upsert", work, yardstick, rounds=rounds, before=batches.turn)


def insert(table: mkv.Table, rows: int, rounds: int) -> Compared:
    """Pull ids that are not there yet, which initialises their rows."""
    out = np.empty((BATCH, DIM), np.float32)
    fresh = scrambled_ids(BATCH * (rounds + 8), start=2 * rows)
    batches = Batches(np.arange(len(fresh)), fresh, BATCH)
    space = np.zeros((len(fresh), DIM), np.float32)
    rng = np.random.default_rng(4)

    def work() -> None:
        table.pull(batches.ids, out=out)

    def yardstick() -> None:
        space[batches.positions] = rng.random((BATCH, DIM), np.float32)

    return compare("insert by pull", work, yardstick, rounds=rounds, before=batches.turn)


def touch(table: mkv.Table, ids: NDArray[np.uint64]) -> Callable[[], None]:
    """Return a function that trains some rows."""
    rng = np.random.default_rng(5)
    gradients = rng.normal(0, 0.1, (TOUCHED, DIM)).astype(np.float32)

    def work() -> None:
        table.push(ids[uniform_positions(rng, len(ids), TOUCHED)], gradients)

    return work


def seal(store: mkv.Store, table: mkv.Table, ids: NDArray[np.uint64], folder: str) -> Compared:
    """Publish a delta."""
    touch_rows = touch(table, ids)
    touch_rows()
    delta = store.seal()
    assert delta is not None
    write = writer(folder, delta.bytes)
    return compare("seal", store.seal, write, rounds=FEW_ROUNDS, before=touch_rows, warm_up=1)


def apply(
    store: mkv.Store, replica: mkv.Store, table: mkv.Table, ids: NDArray[np.uint64], folder: str
) -> Compared:
    """Apply a delta to a replica."""
    touch_rows = touch(table, ids)
    for delta in store.deltas(after=replica.sequence):
        replica.apply(delta)
    waiting: list[mkv.Delta] = []

    def before() -> None:
        touch_rows()
        sealed = store.seal()
        assert sealed is not None
        waiting[:] = [sealed]

    def work() -> None:
        replica.apply(waiting[0])

    before()
    work()
    write = writer(folder, waiting[0].bytes)
    return compare("apply", work, write, rounds=FEW_ROUNDS, before=before, warm_up=1)


def snapshot(store: mkv.Store, folder: str) -> Compared:
    """Write a full checkpoint."""
    names = numbered(folder, "snapshot")
    size = store.snapshot(next(names)).bytes
    previous: list[str] = []

    def before() -> None:
        for path in previous:
            os.unlink(path)
        previous[:] = [next(names)]

    def work() -> None:
        store.snapshot(previous[0])

    result = compare(
        "snapshot", work, writer(folder, size), rounds=FEW_ROUNDS, before=before, warm_up=1
    )
    os.unlink(previous[0])
    return result


def restore(store: mkv.Store, folder: str) -> Compared:
    """Make a store from a checkpoint; the yardstick reads the file and copies what it read."""
    taken = store.snapshot(os.path.join(folder, "taken"))
    names = numbered(folder, "restored")

    def work() -> None:
        path = next(names)
        mkv.restore(taken.path, path, mode="replica").close()
        shutil.rmtree(path)

    def yardstick() -> None:
        np.fromfile(taken.path, np.uint8).copy()

    return compare("restore", work, yardstick, rounds=FEW_ROUNDS, warm_up=1)


def writer(folder: str, size: int) -> Callable[[], None]:
    """Return a function that writes and flushes a file of `size` bytes."""
    data = np.random.default_rng(6).bytes(size)
    path = os.path.join(folder, "yardstick")

    def write() -> None:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return write


def numbered(folder: str, name: str) -> Iterator[str]:
    """Yield paths that are not there."""
    return (os.path.join(folder, f"{name}-{number}") for number in count())
