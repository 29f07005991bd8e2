"""Files: seal, apply, snapshot and restore beside writing, flushing or reading as many bytes.

Stores and files are in memory where there is such a place: a disk's mood is not what is measured.
These are figures, not goals.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from monolith_kv_tools.bench.goals import Figure
from monolith_kv_tools.bench.harness import FAST_FOLDER, Compared, compare
from monolith_kv_tools.bench.scale import Scale
from monolith_kv_tools.bench.tables import DIM, filled
from monolith_kv_tools.bench.traffic import BATCH, uniform_positions
from numpy.typing import NDArray

import monolith_kv as mkv

TOUCHED = 16 * BATCH


def run(scale: Scale) -> Iterator[Figure]:
    """Measure and print; there is nothing to miss."""
    rounds = scale.rounds(7)  # Each takes a tenth of a second and more.
    with (
        filled(scale.sizes[0], gated=False) as bed,
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
        mkv.open(f"{folder}/replica", "replica") as replica,
    ):
        first = bed.store.seal()
        assert first is not None
        replica.apply(first)
        print(f"  {bed.rows:,} rows of {DIM}; rounds {rounds}; of the yardstick, not judged")
        show(seal(bed.store, bed.table, bed.ids, folder, rounds), TOUCHED)
        show(apply(bed.store, replica, bed.table, bed.ids, folder, rounds), TOUCHED)
        show(snapshot(bed.store, folder, rounds), bed.rows)
        show(restore(bed.store, folder, rounds), bed.rows)
    yield from ()


def show(result: Compared, rows: int) -> None:
    """Print a figure that has no goal."""
    rate = rows / result.seconds / 1e6
    print(f"  {result.name:<20} {result.ratio:>6.3g}  {result.detail()}, {rate:.3g} M rows/s")


def touch(table: mkv.Table, ids: NDArray[np.uint64]) -> Callable[[], None]:
    """Return a function that trains some rows."""
    rng = np.random.default_rng(5)
    gradients = rng.normal(0, 0.1, (TOUCHED, DIM)).astype(np.float32)

    def work() -> None:
        table.push(ids[uniform_positions(rng, len(ids), TOUCHED)], gradients)

    return work


def seal(
    store: mkv.Store, table: mkv.Table, ids: NDArray[np.uint64], folder: str, rounds: int
) -> Compared:
    """Publish a delta."""
    touch_rows = touch(table, ids)
    touch_rows()
    delta = store.seal()
    assert delta is not None
    write = writer(folder, delta.bytes)
    return compare("seal", store.seal, write, rounds=rounds, before=touch_rows, warm_up=1)


def apply(
    store: mkv.Store,
    replica: mkv.Store,
    table: mkv.Table,
    ids: NDArray[np.uint64],
    folder: str,
    rounds: int,
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
    return compare("apply", work, write, rounds=rounds, before=before, warm_up=1)


def snapshot(store: mkv.Store, folder: str, rounds: int) -> Compared:
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
        "snapshot", work, writer(folder, size), rounds=rounds, before=before, warm_up=1
    )
    os.unlink(previous[0])
    return result


def restore(store: mkv.Store, folder: str, rounds: int) -> Compared:
    """Make a store from a checkpoint; the yardstick reads the file and copies what it read."""
    taken = store.snapshot(os.path.join(folder, "taken"))
    names = numbered(folder, "restored")

    def work() -> None:
        path = next(names)
        mkv.restore(taken.path, path, mode="replica").close()
        shutil.rmtree(path)

    def yardstick() -> None:
        np.fromfile(taken.path, np.uint8).copy()

    return compare("restore", work, yardstick, rounds=rounds, warm_up=1)


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
