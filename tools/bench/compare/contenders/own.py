"""monolith_kv itself, through its public names."""

from pathlib import Path

import numpy as np
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, LR
from monolith_kv_tools.bench.compare.contender import Contender
from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope

import monolith_kv as mkv


class MonolithKv(Contender):
    """A store with one table; it promises nothing about crashes, as nobody else here does."""

    def version(self) -> str:
        return f"monolith_kv {mkv.__version__}"

    def create(self, folder: Path, scope: Scope) -> None:
        self._out = np.empty((scope.batch, scope.dim), np.float32)
        self._path = folder / "store"
        self._open()
        self._table = self._store.create_table(
            "item", scope.dim, optimizer=mkv.Adagrad(LR, ACCUMULATOR)
        )

    def insert(self, ids: Ids, rows: Rows) -> None:
        self._table.upsert(ids, rows)

    def settle(self) -> None:
        self._store.seal()

    def lookup(self, ids: Ids) -> Rows:
        return self._table.lookup(ids, out=self._out)

    def upsert(self, ids: Ids, rows: Rows) -> None:
        self._table.upsert(ids, rows)

    def step(self, ids: Ids, gradients: Rows) -> Rows:
        rows = self._table.pull(ids, out=self._out)
        self._table.push(ids, gradients)
        return rows

    def save(self, folder: Path) -> Path:
        return Path(self._store.snapshot().path)

    def load(self, path: Path) -> None:
        # The checkpoint lies under the store: opening the store reads it.
        self._open()
        self._table = self._store.table("item")

    def close(self) -> None:
        self._store.close()

    def _open(self) -> None:
        self._store = mkv.open(self._path, durability="none", delta_interval=None)
