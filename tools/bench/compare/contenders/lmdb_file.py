"""py-lmdb: sorted batches through a cursor, keys of 8 bytes, most significant first.

LMDB keeps pages in the order of keys and asks for sorted bulk work; getmulti and putmulti keep the
loop in C, and with buffers a value is copied once. Nothing is synced: nothing is promised here.
"""

from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from monolith_kv_tools.bench.compare.contenders.stores import ByteStore, keys_of, rows_of, values_of
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope

MAP_BYTES = 64 * 2**30


class LmdbFile(ByteStore):
    """Rows and accumulators in a database each."""

    def version(self) -> str:
        return f"lmdb {lmdb.__version__} (LMDB {'.'.join(map(str, lmdb.version()))})"

    def create(self, folder: Path, scope: Scope) -> None:
        self.dim = scope.dim
        self._open(folder / "lmdb")

    def read_rows(self, ids: Ids) -> Rows:
        order = np.argsort(ids)
        rows = np.empty((len(ids), self.dim), np.float32)
        with self._file.begin(buffers=True) as transaction:
            rows[order] = self._read(transaction, self._rows, ids[order])
        return rows

    def read_both(self, ids: Ids) -> tuple[Rows, Rows]:
        with self._file.begin(buffers=True) as transaction:
            rows = self._read(transaction, self._rows, ids)
            return rows, self._read(transaction, self._accumulators, ids)

    def write(self, ids: Ids, rows: Rows, accumulators: Rows | None) -> None:
        order = np.argsort(ids)
        keys = keys_of(ids[order])
        with self._file.begin(write=True) as transaction:
            for database, values in ((self._rows, rows), (self._accumulators, accumulators)):
                if values is not None:
                    with transaction.cursor(database) as cursor:
                        cursor.putmulti(list(zip(keys, values_of(values[order]), strict=True)))

    def save(self, folder: Path) -> Path:
        self._file.copy(str(folder), compact=True)
        return folder

    def load(self, path: Path) -> None:
        self._open(path)

    def close(self) -> None:
        self._file.close()

    def _open(self, path: Path) -> None:
        self._file = lmdb.open(
            str(path), map_size=MAP_BYTES, max_dbs=2, writemap=True, sync=False, readahead=False
        )
        self._rows = self._file.open_db(b"rows")
        self._accumulators = self._file.open_db(b"accumulators")

    def _read(self, transaction: lmdb.Transaction, database: Any, ids: Ids) -> Rows:
        """Return the rows of ascending ids."""
        with transaction.cursor(database) as cursor:
            return rows_of([value for _, value in cursor.getmulti(keys_of(ids))], self.dim)
