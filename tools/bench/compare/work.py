"""The work that every contender is given: ids, rows, batches and what must be read back.

Everything follows from a Scope, so that no row has to travel between processes: rows are a formula
of their position, batches come from a seed. All contenders report the fingerprint of what they
work on, which shows that it is the same.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from monolith_kv_tools.bench.compare.adagrad import ACCUMULATOR, adagrad_step, summed
from monolith_kv_tools.bench.traffic import scrambled_ids, uniform_positions, zipf_positions
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Ids = NDArray[np.uint64] | Positions
"""Of 64 bits; whoever has no index is handed positions in place of them."""
Rows = NDArray[np.float32]

UNIFORM, ZIPF, NEW = "uniform", "Zipf 1.05", "distinct"
LOOKUP, UPSERT, STEP = "lookup", "upsert", "step"
MEASURED = [(LOOKUP, UNIFORM), (LOOKUP, ZIPF), (UPSERT, NEW), (STEP, UNIFORM), (STEP, ZIPF)]
"""Operations with the traffic that they are timed on, in this order."""

# Enough that a batch has left the caches when its turn comes again; fewer where the check has to
# keep what was written.
LOOKUP_BATCHES = 64
WRITE_BATCHES = 16
UPSERTED, GRADIENTS = 1, 2  # Versions of the formula; 0 is what a table is filled with.
AMPLITUDE = 0.05


@dataclass(frozen=True)
class Scope:
    """What is measured on.

    Parameters
    ----------
    rows : int
        In the table.
    dim : int
        Of a row, float32.
    batch : int
        Ids in a call.
    threads : int
        That a library may compute with; 0 is its own choice.
    """

    rows: int
    dim: int
    batch: int
    threads: int


def rows_at(positions: Positions, dim: int, version: int = 0) -> Rows:
    """Return the rows that belong to these positions, (n, dim) float32 in +-0.05."""
    # A mix of 32 bits for each element: the same on every version of NumPy.
    columns = np.arange(dim, dtype=np.uint32)
    x: NDArray[np.uint32] = positions.astype(np.uint32)[:, None] * np.uint32(dim) + columns
    x += np.uint32((version * 0x9E3779B9) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    unit = (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    rows: Rows = (unit - np.float32(0.5)) * np.float32(2 * AMPLITUDE)
    return rows


class Work:
    """Batches by operation and traffic, and gradients.

    Parameters
    ----------
    scope : Scope
        What follows from it is the same in every process.

    Attributes
    ----------
    ids : ndarray of uint64, shape (rows,)
        Id of each position, spread over 64 bits.
    gradients : ndarray of float32, shape (batch, dim)
        Of every training step.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.ids = scrambled_ids(scope.rows)
        self.gradients = 2 * rows_at(np.arange(scope.batch), scope.dim, GRADIENTS)
        rng = np.random.default_rng(1)
        shape = (WRITE_BATCHES, scope.batch)
        count = WRITE_BATCHES * scope.batch
        several = [rng.permutation(scope.rows)[: scope.batch] for _ in range(WRITE_BATCHES)]
        self._batches = {
            (UPSERT, NEW): np.stack(several),
            (STEP, UNIFORM): uniform_positions(rng, scope.rows, count).reshape(shape),
            (STEP, ZIPF): zipf_positions(rng, scope.rows, count, 1.05).reshape(shape),
        }
        shape = (LOOKUP_BATCHES, scope.batch)
        count = LOOKUP_BATCHES * scope.batch
        uniform = uniform_positions(rng, scope.rows, count).reshape(shape)
        self._batches[LOOKUP, UNIFORM] = uniform
        zipf = zipf_positions(rng, scope.rows, count, 1.05).reshape(shape)
        self._batches[LOOKUP, ZIPF] = zipf

    def positions(self, operation: str, traffic: str, number: int) -> Positions:
        """Return batch `number`, (batch,) int64; after the last comes the first."""
        batches = self._batches[operation, traffic]
        positions: Positions = batches[number % len(batches)]
        return positions

    def written(self) -> Positions:
        """Return the positions that some upsert or step writes, ascending."""
        parts = [b.ravel() for (kind, _), b in self._batches.items() if kind != LOOKUP]
        return np.unique(np.concatenate(parts))

    def fingerprint(self) -> int:
        """Return a checksum of ids, batches, gradients and some rows."""
        some = rows_at(np.arange(min(self.scope.rows, 1000)), self.scope.dim)
        arrays: list[NDArray[Any]] = [self.ids, self.gradients, some, *self._batches.values()]
        value = 0
        for array in arrays:
            value = zlib.crc32(array.tobytes(), value)
        return value


class Expected:
    """What a table has to hold after the same writes, in plain NumPy.

    Only what was written is kept; all other rows are the formula's.
    """

    def __init__(self, work: Work) -> None:
        dim = work.scope.dim
        self._dim = dim
        self._written = work.written()
        self._rows = rows_at(self._written, dim)
        self._accumulators = np.full((len(self._written), dim), ACCUMULATOR, np.float32)

    def rows(self, positions: Positions) -> Rows:
        """Return what a lookup must give, (n, dim)."""
        rows = rows_at(positions, self._dim)
        places, known = self._places(positions)
        rows[known] = self._rows[places[known]]
        return rows

    def upsert(self, positions: Positions, rows: Rows) -> None:
        """Set the rows; their accumulators stay."""
        self._rows[self._places(positions)[0]] = rows

    def step(self, positions: Positions, gradients: Rows) -> None:
        """Take one step of Adagrad for each distinct position."""
        distinct, sums = summed(positions, gradients)
        places, _ = self._places(distinct)
        rows, accumulators = self._rows[places], self._accumulators[places]
        adagrad_step(rows, accumulators, sums)
        self._rows[places], self._accumulators[places] = rows, accumulators

    def _places(self, positions: Positions) -> tuple[Positions, NDArray[np.bool_]]:
        places = np.minimum(np.searchsorted(self._written, positions), len(self._written) - 1)
        known: NDArray[np.bool_] = self._written[places] == positions
        return places, known
