"""What stores of bytes have in common: rows are cut into values, values are put together.

They have no optimizer: a step reads rows and accumulators of the distinct ids, computes in NumPy
and writes both back, in as few calls as the store allows.
"""

import abc
from collections.abc import Sequence

import numpy as np
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, adagrad_step, summed
from monolith_kv_tools.bench.compare.contender import Contender
from monolith_kv_tools.bench.compare.work import Ids, Rows


class ByteStore(Contender):
    """A store in which rows and accumulators lie apart, so that a lookup reads rows only."""

    dim: int

    @abc.abstractmethod
    def read_rows(self, ids: Ids) -> Rows:
        """Return the rows, (n, dim), writable."""

    @abc.abstractmethod
    def read_both(self, ids: Ids) -> tuple[Rows, Rows]:
        """Return rows and accumulators of distinct ids."""

    @abc.abstractmethod
    def write(self, ids: Ids, rows: Rows, accumulators: Rows | None) -> None:
        """Set rows, and accumulators where they are given, of distinct ids."""

    def insert(self, ids: Ids, rows: Rows) -> None:
        self.write(ids, rows, np.full_like(rows, ACCUMULATOR))

    def lookup(self, ids: Ids) -> Rows:
        return self.read_rows(ids)

    def upsert(self, ids: Ids, rows: Rows) -> None:
        self.write(ids, rows, None)

    def step(self, ids: Ids, gradients: Rows) -> Rows:
        distinct, sums = summed(ids, gradients)
        rows, accumulators = self.read_both(distinct)
        pulled: Rows = rows[np.searchsorted(distinct, ids)]
        adagrad_step(rows, accumulators, sums)
        self.write(distinct, rows, accumulators)
        return pulled


def keys_of(ids: Ids) -> list[bytes]:
    """Return keys of 8 bytes that sort as the ids do."""
    keys: list[bytes] = ids.astype(">u8").view("V8").tolist()
    return keys


def values_of(rows: Rows) -> list[bytes]:
    """Return one value of 4 * dim bytes for each row."""
    size = 4 * rows.shape[1]
    values: list[bytes] = np.ascontiguousarray(rows).view(f"V{size}").ravel().tolist()
    return values


def rows_of(values: Sequence[bytes | memoryview], dim: int) -> Rows:
    """Return values as writable rows, (n, dim)."""
    return np.frombuffer(bytearray().join(values), np.float32).reshape(len(values), dim)
