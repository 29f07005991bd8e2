"""An overflow tier with tables over it, for tests of the tier alone."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from monolith_kv._table import Barrier, TableCore
from monolith_kv.storage.overflow import OverflowTier

DIM = 12


class Bed:
    """A tier, and tables whose rows are told by their values."""

    def __init__(self, folder: Path | str, limit: int | None = None) -> None:
        self.tier = OverflowTier(os.path.join(folder, "overflow"), limit)
        self.cores: dict[int, TableCore] = {}

    def core(self, table: int = 1) -> TableCore:
        if table not in self.cores:
            self.cores[table] = TableCore(Barrier(), [(DIM, 0, (1.0,), 0, 0.0, 0.0, 0)], table)
        return self.cores[table]

    def put(self, fids: Any, value: float = 0.0, table: int = 1) -> None:
        """Make rows of these values, and let them become cold."""
        core = self.core(table)
        self.promote(fids, table)
        core.upsert(fids, rows_of(fids, value), 1_000.0)
        self.evict(fids, table)

    def evict(self, fids: Any, table: int = 1) -> None:
        core = self.core(table)
        records = core.pack(fids)[0].reshape(-1, core.record_bytes)
        places = self.tier.write(table, core, records)
        core.evict(records.reshape(-1), places)
        self.tier.settle(table, places)
        self.tier.tidy()

    def promote(self, fids: Any, table: int = 1) -> None:
        core = self.core(table)
        records, _ = self.tier.read(core, core.cold(fids))
        core.promote(records.reshape(-1))

    def forget(self, fids: Any, table: int = 1) -> None:
        self.promote(fids, table)
        self.core(table).remove(fids)

    def get(self, fids: Any, table: int = 1) -> tuple[Any, Any]:
        """The embeddings that come back, and their positions."""
        records, positions = self.tier.read(self.core(table), fids)
        floats = np.ascontiguousarray(records[:, 16:]).view(np.float32)
        return floats.reshape(-1, DIM), positions

    def holds(self, fids: Any, value: float = 0.0, table: int = 1) -> bool:
        found, positions = self.get(fids, table)
        return len(positions) == len(fids) and np.array_equal(found, rows_of(fids, value))


def rows_of(fids: Any, value: float) -> Any:
    first = (np.asarray(fids, np.uint64) % np.uint64(65_521)).astype(np.float32) + value
    return first[:, None] + np.arange(DIM, dtype=np.float32)


def random_fids(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
