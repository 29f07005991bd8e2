"""Cold rows of a snapshot that a store is opened from: they stay where they are."""

from collections.abc import Callable, Mapping

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
    """Takes the cold rows of a snapshot into the overflow tier, where they lie.

    Parameters
    ----------
    state : StoreState
        Whose tables they belong to.
    overflow : OverflowTier
        Of this state.
    by_id : mapping
        The tables.
    reader : SnapshotReader
        The snapshot.
    loader : Loader
        Lets the tables know them.
    count : callable
        Called with how many rows were taken, each time.
    """

    def __init__(
        self,
        state: StoreState,
        overflow: OverflowTier,
        by_id: Mapping[int, TableEntry],
        reader: SnapshotReader,
        loader: Loader,
        count: Callable[[int], None],
    ) -> None:
        self._state, self._overflow = state, overflow
        self._by_id, self._reader = by_id, reader
        self._loader, self._count = loader, count
        # In use until all is taken: those taken first may be gone by then.
        self._disk = DiskFile(
            reader.path, reader.duplicate(), reader.header.seed, is_own=False, users=1
        )

    def __call__(self, cold: ColdRows) -> None:
        """Take the rows of one record."""
        path, entry = self._reader.path, entry_of(self._by_id, cold, self._reader.path)
        if not has_places(cold, entry.core.record_bytes + PLACE_SUM_BYTES):
            raise CorruptionError(
                f"{path} at byte {cold.offset}: cold rows of {cold.size // len(cold.fids)} bytes, "
                f"table {entry.schema.name} has {entry.core.record_bytes}; run mkv verify",
                path,
                cold.offset,
            )
        for job in self._overflow.adopt(entry.id, entry.core, self._disk, cold):
            self._loader.do(job, cold.fids.nbytes + cold.times.nbytes)
        self._count(len(cold.fids))
        if self._state.budget is not None:
            with self._state.mutex:
                self._state.budget.settle()

    def close(self) -> None:
        """Let go of the file; it stays open as long as rows lie in it."""
        self._disk.leave()
