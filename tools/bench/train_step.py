"""A training step of 8,192 ids, pull + push with Adagrad, against a dict of NumPy rows.

The dict is what a newcomer writes first: fid -> row, fid -> accumulator, a loop over the ids. It
does the same: duplicates summed, one step for each distinct id. Five times its speed is the goal to
start with.
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
    traffics,
)
from monolith_kv_tools.bench.tables import DIM, fill, make_rows
from numpy.typing import NDArray

import monolith_kv as mkv

GOAL = 5.0
BATCH = 8192
LR = 0.05
ACCUMULATOR = 0.1


class DictTable:
    """Rows and accumulators in dicts, trained one id at a time."""

    def __init__(self, ids: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
        self.rows = dict(zip(ids.tolist(), rows.copy(), strict=True))
        state = np.full_like(rows, ACCUMULATOR)
        self.state = dict(zip(ids.tolist(), state, strict=True))

    def pull(self, ids: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
        """Copy the rows out."""
        rows = self.rows
        for place, fid in enumerate(ids.tolist()):
            out[place] = rows[fid]

    def push(self, ids: NDArray[np.uint64], gradients: NDArray[np.float32]) -> None:
        """Sum by id, then one step each."""
        sums: dict[int, NDArray[np.float32]] = {}
        for fid, gradient in zip(ids.tolist(), gradients, strict=True):
            sums[fid] = sums[fid] + gradient if fid in sums else gradient
        for fid, gradient in sums.items():
            accumulator = self.state[fid]
            accumulator += gradient * gradient
            self.rows[fid] -= LR * gradient / np.sqrt(accumulator)


def run(rows: int, rounds: int) -> bool:
    """Measure, print, and return whether the goal is met."""
    dense, ids = make_rows(rows)
    yardstick = DictTable(ids, dense)
    with (
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
        mkv.open(f"{folder}/store", durability="none", delta_interval=None) as store,
    ):
        table = fill(store, ids, dense, mkv.Adagrad(LR, ACCUMULATOR))
        results = [
            measure(name, table, yardstick, batches, rounds)
            for name, batches in traffics(rows, ids, BATCH, batches=32).items()
        ]
    title = f"train step: {rows:,} rows of {DIM}, batches of {BATCH:,}, Adagrad; yardstick dict"
    report(title, results, units=BATCH)
    return all_at_least(results, GOAL)


def measure(
    name: str, table: mkv.Table, yardstick: DictTable, batches: Batches, rounds: int
) -> Compared:
    """Compare one step, and see that both train the same."""
    gradients = np.random.default_rng(2).normal(0, 0.1, (BATCH, DIM)).astype(np.float32)
    out = np.empty((BATCH, DIM), np.float32)
    other = np.empty((BATCH, DIM), np.float32)

    def step() -> None:
        table.pull(batches.ids, out=out)
        table.push(batches.ids, gradients)

    def dict_step() -> None:
        yardstick.pull(batches.ids, other)
        yardstick.push(batches.ids, gradients)

    compared = compare(f"pull + push, {name}", step, dict_step, rounds=rounds, before=batches.turn)
    np.testing.assert_allclose(out, other, rtol=1e-3, atol=1e-4)  # Fast and wrong does not count.
    return compared
