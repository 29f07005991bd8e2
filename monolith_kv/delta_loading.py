"""Load a delta into memory: all of it, or nothing where memory or the disk ends in the middle.

What must hold: whatever may fail is done before the delta counts, and can be taken back without any
memory; what is left for after that cannot fail. Rows come first, removals last, so that taking back
never has to make a row.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from monolith_kv.budget import promote
from monolith_kv.state import NO_FIDS, NO_RECORDS, StoreState, TableEntry
from monolith_kv.storage.delta_log import DeltaReader
from monolith_kv.storage.format import RecordKind
from monolith_kv.storage.framing import Record
from monolith_kv.storage.pending import await_sightings, check_sightings, load_sightings
from monolith_kv.storage.recovery import (
    load_rows,
    set_dense,
)
from monolith_kv.storage.tables import entry_of, read_schemas


class Loading:
    """One verified delta on its way into a state that only this changes. Under files.

    Parameters
    ----------
    state : StoreState
        Of a replica or a reader.
    reader : DeltaReader
        The delta that comes next.
    """

    def __init__(self, state: StoreState, reader: DeltaReader) -> None:
        self._state = state
        self._reader = reader
        self._tables = state.tables
        self._next_table_id = state.next_table_id
        self._dense = replace(state.dense)
        self._schemas = read_schemas(reader.meta["tables"], reader.path)
        self._changed = [
            (entry, entry.schema)
            for entry in state.tables.values()
            if self._schemas.get(entry.id, entry.schema) != entry.schema
        ]
        # The tables as they will be, those that go still among them.
        self._by_id = {entry.id: entry for entry in state.tables.values()}
        self._before: list[tuple[TableEntry, NDArray[np.uint8]]] = []
        self._absent: list[tuple[TableEntry, NDArray[np.uint64]]] = []
        # What is left to do: the file is not read again, since the disk may fail.
        self._removed: dict[TableEntry, NDArray[np.uint64]] = {}
        self._sightings: list[tuple[TableEntry, bytes]] = []

    def prepare(self) -> None:
        """Do all that may fail; after an error the state is as it was."""
        state = self._state
        try:
            with self._unsettled():
                self._add_tables()
                for record in self._reader.records():
                    self._prepare(record)
                for entry, fids in self._removed.items():
                    entry.core.reserve(fids)
                for entry, _ in self._changed:
                    state.change_schema(entry, self._schemas[entry.id])
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Take back what was prepared."""
        state = self._state
        with state.mutex:
            for entry, schema in self._changed:
                # At worst a gate keeps its new settings, which only a promotion would use.
                with contextlib.suppress(MemoryError):
                    state.change_schema(entry, schema)
            for entry, records in self._before:
                entry.core.put_back(records, NO_FIDS)
            for entry, fids in self._absent:
                entry.core.put_back(NO_RECORDS, fids)
            state.tables, state.next_table_id = self._tables, self._next_table_id
            state.dense = self._dense

    def finish(self) -> None:
        """Do the rest, which cannot fail: the delta counts."""
        state, path = self._state, self._reader.path
        with self._unsettled():
            awaited = await_sightings(state)
            for entry, fids in self._removed.items():
                entry.core.put_back(NO_RECORDS, fids)
            for entry, data in self._sightings:
                load_sightings(entry, data, path, awaited)
            self._settle_tables()
        if state.budget is not None:
            with state.mutex:
                state.budget.settle()

    # --- steps -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _unsettled(self) -> Iterator[None]:
        """No row leaves memory meanwhile: what was noted of it could not be put back there."""
        budget = self._state.budget
        if budget is not None:
            budget.is_held = True
        try:
            yield
        finally:
            if budget is not None:
                budget.is_held = False

    def _settle_tables(self) -> None:
        state = self._state
        with state.mutex:
            for entry in list(state.tables.values()):
                if entry.id not in self._schemas:
                    state.drop_entry(entry)
            for table_id, schema in self._schemas.items():
                if schema.name not in state.tables:
                    state.put_entry(self._by_id[table_id])

    def _add_tables(self) -> None:
        state = self._state
        with state.mutex:
            for table_id, schema in self._schemas.items():
                if table_id not in self._by_id:
                    self._by_id[table_id] = entry = state.make_entry(table_id, schema)
                    if schema.name not in state.tables:  # Else it comes when the other has gone.
                        state.put_entry(entry)
                    state.next_table_id = max(state.next_table_id, table_id + 1)

    def _prepare(self, record: Record) -> None:
        state, path = self._state, self._reader.path
        if record.kind == RecordKind.ROWS:
            entry = self._entry(record)
            rows = entry.rows_of(np.frombuffer(record.payload, np.uint8))
            self._note(entry, rows["fid"].astype(np.uint64))
            load_rows(state, self._by_id, record, path)
        elif record.kind == RecordKind.REMOVED:
            entry = self._entry(record)
            fids = np.frombuffer(record.payload, "<u8").astype(np.uint64)
            with state.mutex:
                promote(state, entry, fids)
            # Room for all of a table's at once: what is reserved twice is there once.
            self._removed[entry] = np.concatenate([self._removed.get(entry, NO_FIDS), fids])
        elif record.kind == RecordKind.SIGHTINGS:
            entry, data = self._entry(record), bytes(record.payload)
            check_sightings(entry, data, path)
            self._sightings.append((entry, data))
        elif record.kind == RecordKind.DENSE:
            state.dense = replace(state.dense)
            set_dense(state, record, path)

    def _note(self, entry: TableEntry, fids: NDArray[np.uint64]) -> None:
        """Keep what these rows are, and make room for putting them back."""
        with self._state.mutex:
            promote(self._state, entry, fids)
        entry.core.reserve(fids)
        records, _ = entry.core.pack(fids)
        self._before.append((entry, records))
        self._absent.append((entry, np.setdiff1d(fids, entry.rows_of(records)["fid"])))

    def _entry(self, record: Record) -> TableEntry:
        return entry_of(self._by_id, record, self._reader.path)
