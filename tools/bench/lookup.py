"""Lookup of 8,192 ids in 1 M rows of 64 float32, against np.take from a dense array.

np.take knows the positions: it has no hashing, no index, no lock, and is the least that reading
rows can cost. Half its speed is the goal to start with.
"""

import tempfile

import numpy as np
from monolith_kv_tools.bench.harness import (
    FAST_FOLDER,
    Batches,
    Compared,
    all_at_least,
    compare,
    report,
    scrambled_ids,
    traffics,
)
from monolith_kv_tools.bench.tables import DIM, fill, make_rows
from numpy.typing import NDArray

import monolith_kv as mkv

GOAL = 0.5
BATCH = 8192


def run(rows: int, rounds: int) -> bool:
    """Measure, print, and return whether the goal is met."""
    dense, ids = make_rows(rows)
    results: list[Compared] = []
    with (
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
        mkv.open(f"{folder}/store", durability="none", delta_interval=None) as store,
    ):
        table = fill(store, ids, dense)
        for name, batches in traffics(rows, ids, BATCH, batches=64).items():
            results += lookups(name, table, dense, batches, rounds)
        beside = absent(table, rows, rounds)
    title = f"lookup: {rows:,} rows of {DIM}, batches of {BATCH:,}; yardstick np.take"
    report(title, [*results, beside], units=BATCH)
    return all_at_least([r for r in results if "clip" not in r.name], GOAL)


def lookups(
    name: str, table: mkv.Table, dense: NDArray[np.float32], batches: Batches, rounds: int
) -> list[Compared]:
    """Compare with and without `found`, and see that both read the same rows."""
    out = np.empty((BATCH, DIM), np.float32)
    taken = np.empty((BATCH, DIM), np.float32)
    found = np.empty(BATCH, np.bool_)

    def take() -> None:
        np.take(dense, batches.positions, axis=0, out=taken)

    def look() -> None:
        table.lookup(batches.ids, out=out)

    def look_found() -> None:
        table.lookup(batches.ids, out=out, found=found)

    def take_unbuffered() -> None:
        np.take(dense, batches.positions, axis=0, out=taken, mode="clip")

    results = [
        compare(f"lookup, {name}", look, take, rounds=rounds, before=batches.turn),
        compare(f"lookup with found, {name}", look_found, take, rounds=rounds, before=batches.turn),
    ]
    np.testing.assert_array_equal(out, taken)  # Fast and wrong does not count.
    assert found.all()
    # With its default mode np.take copies by way of a buffer. Without it, a harder yardstick:
    name = f"lookup against clip, {name}"
    results.append(compare(name, look, take_unbuffered, rounds=rounds, before=batches.turn))
    return results


def absent(table: mkv.Table, rows: int, rounds: int) -> Compared:
    """Compare lookups of ids that are not there with filling the rows with zeros."""
    out = np.empty((BATCH, DIM), np.float32)
    strangers = scrambled_ids(BATCH * 64, start=rows)
    batches = Batches(np.arange(len(strangers)), strangers, BATCH)

    def look() -> None:
        table.lookup(batches.ids, out=out)

    def zero() -> None:
        out.fill(0.0)

    return compare("all absent (against fill)", look, zero, rounds=rounds, before=batches.turn)
