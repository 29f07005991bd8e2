"""The tables that the benchmarks are run on."""

import numpy as np
from monolith_kv_tools.bench.harness import scrambled_ids
from numpy.typing import NDArray

import monolith_kv as mkv

DIM = 64
BLOCK = 65536


def make_rows(count: int) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """Return `count` random rows, dense, and their ids."""
    rng = np.random.default_rng(0)
    return rng.random((count, DIM), np.float32), scrambled_ids(count)


def fill(
    store: mkv.Store,
    ids: NDArray[np.uint64],
    rows: NDArray[np.float32],
    optimizer: mkv.Optimizer | None = None,
) -> mkv.Table:
    """Create the table "item" and put the rows in."""
    table = store.create_table("item", DIM, optimizer=optimizer or mkv.Adagrad())
    for start in range(0, len(ids), BLOCK):
        table.upsert(ids[start : start + BLOCK], rows[start : start + BLOCK])
    return table
