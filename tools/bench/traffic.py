"""Ids and the traffic on them: which rows a batch asks for."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BATCH = 8192


def scrambled_ids(count: int, start: int = 0) -> NDArray[np.uint64]:
    """Return `count` distinct ids, spread over all 64 bits."""
    ids = np.arange(start, start + count, dtype=np.uint64)
    # Odd factors and shifted xors are one to one, so distinct stays distinct.
    ids = (ids ^ (ids >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return (ids ^ (ids >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


def uniform_positions(rng: np.random.Generator, rows: int, size: int) -> NDArray[np.int64]:
    """Return `size` positions of 0..rows, all equally likely."""
    return rng.integers(0, rows, size)


def zipf_positions(
    rng: np.random.Generator, rows: int, size: int, exponent: float
) -> NDArray[np.int64]:
    """Return `size` positions of 0..rows by Zipf's law, the popular ones anywhere."""
    places = np.random.default_rng(7).permutation(rows).astype(np.int64)
    positions: NDArray[np.int64] = places[zipf_ranks(rng, rows, size, exponent)]
    return positions


def zipf_ranks(
    rng: np.random.Generator, rows: int, size: int, exponent: float
) -> NDArray[np.int64]:
    """Return `size` ranks of 0..rows by Zipf's law, 0 the most popular."""
    weights = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -exponent)
    ranks: NDArray[np.int64] = np.searchsorted(weights, rng.random(size) * weights[-1])
    return np.minimum(ranks, rows - 1)


def distinct_positions(
    rng: np.random.Generator, rows: int, size: int, batches: int
) -> NDArray[np.int64]:
    """Return positions of which each batch of `size` has none twice."""
    chosen = []
    for _ in range(batches):
        batch = np.unique(rng.integers(0, rows, size + size // 8 + 64))
        while len(batch) < size:
            batch = np.unique(np.concatenate([batch, rng.integers(0, rows, size)]))
        chosen.append(rng.permutation(batch)[:size])
    return np.concatenate(chosen)


def repeat_some(
    rng: np.random.Generator, positions: NDArray[np.int64], size: int, share: float
) -> NDArray[np.int64]:
    """Return distinct positions with a share of each batch made repetitions of the others."""
    batches = positions.reshape(-1, size).copy()
    count = int(size * share)
    for batch in batches:
        order = rng.permutation(size)
        batch[order[:count]] = batch[rng.choice(order[count:], count)]
    return batches.reshape(-1)


class Batches:
    """Batches of one traffic, taken in turn: enough of them that none is still in the caches.

    Parameters
    ----------
    positions : ndarray of int64, shape (batches * size,)
        Where the rows are in a dense array.
    ids : ndarray of uint64, shape (rows,)
        Id of each row.
    size : int
        Of a batch.

    Attributes
    ----------
    positions, ids : ndarray, shape (size,)
        The current batch.
    at : int
        Its number.
    """

    def __init__(
        self, positions: NDArray[np.int64], ids: NDArray[np.uint64], size: int = BATCH
    ) -> None:
        self._positions: Sequence[NDArray[np.int64]] = list(positions.reshape(-1, size))
        self._ids = [np.ascontiguousarray(ids[batch]) for batch in self._positions]
        self.at = 0
        self.positions, self.ids = self._positions[0], self._ids[0]

    def turn(self) -> None:
        """Go on to the next batch."""
        self.at = (self.at + 1) % len(self._ids)
        self.positions, self.ids = self._positions[self.at], self._ids[self.at]

    def __len__(self) -> int:
        """How many batches."""
        return len(self._ids)


def fresh_batches(count: int, start: int, size: int = BATCH) -> Batches:
    """Return batches of ids that no table here has: those from number `start` on."""
    return Batches(np.arange(count * size), scrambled_ids(count * size, start), size)


def traffics(rows: int, ids: NDArray[np.uint64], batches: int) -> dict[str, Batches]:
    """Return the kinds of traffic that calls are measured with."""
    rng = np.random.default_rng(1)
    count = BATCH * batches
    return {
        "uniform": Batches(uniform_positions(rng, rows, count), ids),
        "zipf": Batches(zipf_positions(rng, rows, count, 1.05), ids),
    }
