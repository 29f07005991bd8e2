"""How every benchmark here measures: in turns with a yardstick, medians of many rounds, as ratios.

A machine's speed moves by the minute and by its other users. A ratio of two things that were timed
in turns, in one process, on the same data moves much less; absolute figures are printed beside it
for a feeling only. The order within a round alternates, so that neither always finds the caches
warm.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Work = Callable[[], object]

FAST_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A place for stores where the disk is not what is measured; None for the system's own."""


@dataclass(frozen=True)
class Compared:
    """Medians of what was timed in turns.

    Parameters
    ----------
    name : str
        What was measured.
    seconds, yardstick_s : float
        Medians of one call.
    ratio : float
        Median over the rounds of yardstick / measured: 2 is twice as fast as the yardstick.
    low, high : float
        Quartiles of that ratio.
    rounds : int
        How many.
    """

    name: str
    seconds: float
    yardstick_s: float
    ratio: float
    low: float
    high: float
    rounds: int


def compare(
    name: str,
    work: Work,
    yardstick: Work,
    *,
    rounds: int = 101,
    before: Work | None = None,
    warm_up: int = 3,
) -> Compared:
    """Time two things in turns.

    Parameters
    ----------
    name : str
        For the report.
    work, yardstick : callable
        One call of each is timed in every round.
    rounds : int
        How many rounds count.
    before : callable, optional
        Called untimed before each round: to choose the next batch, say.
    warm_up : int
        Rounds before that do not count.
    """
    measured: list[float] = []
    reference: list[float] = []
    was_enabled = gc.isenabled()
    gc.disable()  # A collection in the middle of a round is not the engine's doing.
    try:
        for turn in range(-warm_up, rounds):
            if before is not None:
                before()
            if turn % 2:
                first, second = _timed(work), _timed(yardstick)
            else:
                second, first = _timed(yardstick), _timed(work)
            if turn >= 0:
                measured.append(first)
                reference.append(second)
    finally:
        if was_enabled:
            gc.enable()
    ratios = sorted(r / m for r, m in zip(reference, measured, strict=True))
    return Compared(
        name,
        statistics.median(measured),
        statistics.median(reference),
        statistics.median(ratios),
        ratios[len(ratios) // 4],
        ratios[(3 * len(ratios)) // 4],
        rounds,
    )


def _timed(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def report(title: str, results: Iterable[Compared], *, units: int = 0, unit: str = "ids") -> None:
    """Print results as a table; `units` are what one call handles, for a rate."""
    print(f"\n{title}")
    rate = f"   M {unit}/s" if units else ""
    print(f"  {'':<34} {'ratio':>7} {'quartiles':>15}  {'call':>11} {'yardstick':>11}{rate}")
    for r in results:
        line = (
            f"  {r.name:<34} {r.ratio:>7.3g} {r.low:>7.3g} {r.high:>7.3g}  "
            f"{_time_text(r.seconds):>11} {_time_text(r.yardstick_s):>11}"
        )
        if units:
            line += f" {units / r.seconds / 1e6:>9.2f}"
        print(line, flush=True)


def all_at_least(results: Iterable[Compared], goal: float) -> bool:
    """Print the verdict on each ratio; whether all are met."""
    holds = True
    for each in results:
        holds &= verdict(each.name, each.ratio, goal, at_least=True)
    return holds


def verdict(name: str, value: float, limit: float, *, at_least: bool) -> bool:
    """Print whether a figure keeps to what was promised, and return that."""
    holds = value >= limit if at_least else value <= limit
    sign = ">=" if at_least else "<="
    mark = "ok  " if holds else "MISS"
    print(f"  {mark} {name}: {value:.3g} (goal {sign} {limit:g})", flush=True)
    return holds


def _time_text(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


# --- traffic ---------------------------------------------------------------------------------


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
    weights = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(weights, rng.random(size) * weights[-1])
    places = np.random.default_rng(7).permutation(rows).astype(np.int64)
    positions: NDArray[np.int64] = places[np.minimum(ranks, rows - 1)]
    return positions


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
    """

    def __init__(self, positions: NDArray[np.int64], ids: NDArray[np.uint64], size: int) -> None:
        self._positions: Sequence[NDArray[np.int64]] = list(positions.reshape(-1, size))
        self._ids = [np.ascontiguousarray(ids[batch]) for batch in self._positions]
        self._at = 0
        self.positions, self.ids = self._positions[0], self._ids[0]

    def turn(self) -> None:
        """Go on to the next batch."""
        self._at = (self._at + 1) % len(self._ids)
        self.positions, self.ids = self._positions[self._at], self._ids[self._at]


def traffics(rows: int, ids: NDArray[np.uint64], size: int, batches: int) -> dict[str, Batches]:
    """Return the kinds of traffic that every benchmark is run on."""
    rng = np.random.default_rng(1)
    count = size * batches
    return {
        "uniform": Batches(uniform_positions(rng, rows, count), ids, size),
        "Zipf 1.05": Batches(zipf_positions(rng, rows, count, 1.05), ids, size),
    }
