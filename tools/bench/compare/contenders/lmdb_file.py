"""py-lmdb: sorted batches through a cursor, keys of 8 bytes, most significant first.

LMDB reads and writes pages in the order of keys, and its documentation asks for sorted bulk work;
getmulti and putmulti keep the loop in C. Nothing is synced, as nothing is promised here.
"""

from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, adagrad_step, summed
from monolith_kv_tools.bench.compare.contender import Contender
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope

MAP_BYTES = 64 * 2**30


class LmdbFile(Contender):
    """Rows and accumulators in a database each, so that a lookup reads rows only."""

    def version(self) -> str:
        return f"lmdb {lmdb.__version__} (LMDB {'.'.join(map(str, lmdb.version()))})"

    def create(self, folder: Path, scope: Scope) -> None:
        self._dim = scope.dim
        self._open(folder / "lmdb")

    def insert(self, ids: Ids, rows: Rows) -> None:
        state = np.full_like(rows, ACCUMULATOR)
        with self._file.begin(write=True) as transaction:
            self._write(transaction, self._rows, ids, rows)
            self._write(transaction, self._accumulators, ids, state)

    def lookup(self, ids: Ids) -> Rows:
        # With buffers, getmulti hands out views of the map: each value is copied once.
        with self._file.begin(buffers=True) as transaction:
            order = np.argsort(ids)
            rows = np.empty((len(ids), self._dim), np.float32)
            rows[order] = self._read(transaction, self._rows, ids[order])
        return rows

    def upsert(self, ids: Ids, rows: Rows) -> None:
        with self._file.begin(write=True) as transaction:
            self._write(transaction, self._rows, ids, rows)

    def step(self, ids: Ids, gradients: Rows) -> Rows:
        distinct, sums = summed(ids, gradients)
        with self._file.begin(write=True, buffers=True) as transaction:
            rows = self._read(transaction, self._rows, distinct)
            pulled: Rows = rows[np.searchsorted(distinct, ids)]
            accumulators = self._read(transaction, self._accumulators, distinct)
            adagrad_step(rows, accumulators, sums)
            self._write(transaction, self._rows, distinct, rows)
            self._write(transaction, self._accumulators, distinct, accumulators)
        return pulled

    def save(self, path: Path) -> None:
        path.mkdir()
        self._file.copy(str(path), compact=True)

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
            values = b"".join([value for _, value in cursor.getmulti(keys_of(ids))])
        rows = np.frombuffer(bytearray(values), np.float32)
        return rows.reshape(len(ids), self._dim)

    def _write(self, transaction: lmdb.Transaction, database: Any, ids: Ids, rows: Rows) -> None:
        order = np.argsort(ids)
        raw = rows[order].tobytes()
        size = 4 * self._dim
        values = (raw[start : start + size] for start in range(0, len(raw), size))
        with transaction.cursor(database) as cursor:
            cursor.putmulti(zip(keys_of(ids[order]), values, strict=True))


def keys_of(ids: Ids) -> list[bytes]:
    """Return keys that sort as the ids do."""
    keys: list[bytes] = ids.astype(">u8").view("V8").tolist()
    return keys
