"""Cold rows of a snapshot that a store is opened from: they stay where they are."""

import os
from collections.abc import Mapping

from monolith_kv.errors import CorruptionError
from monolith_kv.loading import Loader
from monolith_kv.state import StoreState, TableEntry
from monolith_kv.storage.cold_rows import ColdRows, has_places
from monolith_kv.storage.format import PLACE_SUM_BYTES
from monolith_kv.storage.overflow import OverflowTier
from monolith_kv.storage.row_files import DiskFile
from monolith_kv.storage.snapshot import SnapshotReader
from monolith_kv.storage.tables import entry_of


class Adopter:
    """Takes the cold rows of a snapshot into the overflow tier where they lie."""

    def __init__(
        self,
        state: StoreState,
        overflow: OverflowTier,
        by_id: Mapping[int, TableEntry],
        reader: SnapshotReader,
        loader: Loader,
    ) -> None:
        self.rows = 0
        self._state, self._overflow = state, overflow
        self._by_id, self._reader, self._loader = by_id, reader, loader
        self._disk: DiskFile | None = None

    def __call__(self, cold: ColdRows) -> None:
        """Take the rows of one record."""
        reader = self._reader
        entry = entry_of(self._by_id, cold, reader.path)
        if not has_places(cold, entry.core.record_bytes + PLACE_SUM_BYTES):
            raise CorruptionError(
                f"{reader.path} at byte {cold.offset}: cold rows of {cold.size // len(cold.fids)} "
                f"bytes, table {entry.schema.name} has {entry.core.record_bytes}; run mkv verify",
                reader.path,
                cold.offset,
            )
        if self._disk is None:
            self._disk = self._overflow.share(reader.path, reader.duplicate(), reader.header.seed)
        try:
            jobs = self._overflow.adopt(entry.id, entry.core, self._disk, cold)
        finally:
            if not self._disk.users:
                os.close(self._disk.fd)
        for job in jobs:
            self._loader.do(job, cold.fids.nbytes + cold.times.nbytes)
        self.rows += len(cold.fids)
        if self._state.budget is not None:
            with self._state.mutex:
                self._state.budget.settle()
