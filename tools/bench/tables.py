"""The tables that the benchmarks are run on, each beside a plain array of the same rows."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from monolith_kv_tools.bench.harness import FAST_FOLDER
from monolith_kv_tools.bench.traffic import scrambled_ids
from numpy.typing import NDArray

import monolith_kv as mkv

DIM = 64
BLOCK = 65536
LR = 0.05
ACCUMULATOR = 0.1


@dataclass(frozen=True)
class Bed:
    """A table filled with the rows of an array.

    Parameters
    ----------
    store : Store
        Its store, without background work.
    table : Table
        The table "item".
    ids : ndarray of uint64, shape (rows,)
        Id of each row of `dense`.
    dense : ndarray of float32, shape (rows, dim)
        The same rows at known positions.
    """

    store: mkv.Store
    table: mkv.Table
    ids: NDArray[np.uint64]
    dense: NDArray[np.float32]

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.ids)


def aligned(rows: int, dim: int) -> NDArray[np.float32]:
    """Return an array whose first float begins a cache line, as an engine's rows do.

    NumPy's own begin 16 bytes behind one: each row of 256 bytes would then lie in five lines, and
    the limit would be a fifth too low.
    """
    space = np.empty(rows * dim + 16, np.float32)
    first = -space.ctypes.data % 64 // 4
    return space[first : first + rows * dim].reshape(rows, dim)


@contextlib.contextmanager
def scratch_store(clock: Callable[[], float] = time.time) -> Iterator[mkv.Store]:
    """Yield a store without background work; what is in it at the end is thrown away."""
    with (
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
        mkv.open(f"{folder}/s", durability="none", delta_interval=None, clock=clock) as store,
    ):
        yield store
        # Closing seals: without its tables there is nothing to write, which may be gigabytes.
        for name in list(store.tables):
            store.drop_table(name)


@contextlib.contextmanager
def filled(
    rows: int, dim: int = DIM, optimizer: mkv.Optimizer | None = None, *, gated: bool = True
) -> Iterator[Bed]:
    """Yield a table of `rows` random rows; with a gate and a TTL unless told otherwise."""
    rng = np.random.default_rng(0)
    ids = scrambled_ids(rows)
    dense = aligned(rows, dim)
    with scratch_store() as store:
        table = store.create_table(
            "item",
            dim,
            optimizer=optimizer or mkv.Adagrad(LR, ACCUMULATOR),
            admission=mkv.FrequencyGate(2) if gated else None,
            ttl="30d" if gated else None,
        )
        for start in range(0, rows, BLOCK):
            part = dense[start : start + BLOCK]
            rng.random(dtype=np.float32, out=part)
            table.upsert(ids[start : start + BLOCK], part)
        yield Bed(store, table, ids, dense)
