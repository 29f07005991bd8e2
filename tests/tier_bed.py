"""An overflow tier by itself, over tables whose rows are told by their values."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from monolith_kv._table import Barrier, TableCore
from monolith_kv.storage import overflow
from monolith_kv.storage.cold_rows import ColdRows
from monolith_kv.storage.overflow import OverflowTier
from monolith_kv.storage.row_files import DiskFile

DIM = 12
FRONT, SEED = 128, 7  # Of files with rows that the tier takes.


class Bed:
    """A tier, and tables whose rows are told by their values."""

    def __init__(self, folder: Path | str, limit: int | None = None) -> None:
        self.tier = OverflowTier(os.path.join(folder, "overflow"), limit)
        self.cores: dict[int, TableCore] = {}

    def core(self, table: int = 1) -> TableCore:
        if table not in self.cores:
            self.cores[table] = new_core(table)
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

    def take(
        self, path: Path, *batches: Any, value: float = 0.0, table: int = 1
    ) -> tuple[DiskFile, list[Any]]:
        """Let rows of these values lie in a file, as of a snapshot: a record of it for each batch.

        Returns its file, and what is left to do until the table knows them.
        """
        core, data, jobs, found = self.core(table), bytes(FRONT), [], []
        for fids in batches:
            other = new_core(table)
            other.upsert(fids, rows_of(fids, value), 1_000.0)
            records = other.pack(fids)[0]
            ids = overflow.fids_of(records.reshape(len(fids), -1))
            places, times = core.checksummed(records, SEED), np.full(len(fids), 1_000, np.int64)
            digest = other.digest_of(records)
            found.append(ColdRows(table, ids, times, digest, len(data), places.nbytes))
            data += places.tobytes()
        path.write_bytes(data)
        disk = DiskFile(str(path), os.open(path, os.O_RDONLY), SEED, is_own=False)
        for rows in found:
            jobs += self.tier.adopt(table, core, disk, rows)
        return disk, jobs

    def parts(self, table: int = 1) -> list[Any]:
        """Parts of such files that the tier has."""
        return list(self.tier._tables[table].parts.values())


def new_core(table: int) -> TableCore:
    return TableCore(Barrier(), [(DIM, 0, (1.0,), 0, 0.0, 0.0, 0)], table)


def rows_of(fids: Any, value: float) -> Any:
    first = (np.asarray(fids, np.uint64) % np.uint64(65_521)).astype(np.float32) + value
    return first[:, None] + np.arange(DIM, dtype=np.float32)


def random_fids(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
