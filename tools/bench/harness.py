"""How every benchmark here measures: in turns with a yardstick, medians of many rounds, as ratios.

A machine's speed moves by the minute and by its other users. A ratio of two things that were timed
in turns, in one process, on the same data moves much less; absolute figures are printed beside it
for a feeling only. The order within a round alternates, so that neither always finds the caches
warm.
"""

import contextlib
import ctypes
import gc
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

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

    def detail(self) -> str:
        """Return quartiles and absolute times in words."""
        return (
            f"[{self.low:.3g} {self.high:.3g}] {time_text(self.seconds)} : "
            f"{time_text(self.yardstick_s)}"
        )


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
    with no_collection():
        for turn in range(-warm_up, rounds):
            if before is not None:
                before()
            if turn % 2:
                first, second = timed(work), timed(yardstick)
            else:
                second, first = timed(yardstick), timed(work)
            if turn >= 0:
                measured.append(first)
                reference.append(second)
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


def timed(work: Work) -> float:
    """Return the seconds that one call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's cycle collector away: its pause in a round is not the engine's doing."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed."""
    if not values:
        raise ValueError("percentile of no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def time_text(seconds: float) -> str:
    """Return a time for people."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def resident_bytes() -> int:
    """Return the resident set of this process, without what malloc keeps for the next caller."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # Of glibc alone.
    return resident_bytes_now()


def resident_bytes_now() -> int:
    """Return the resident set of this process as it is."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- what happens beside something else --------------------------------------------------------


class Disturber:
    """A thread that calls something over and over while it is let.

    Parameters
    ----------
    work : callable
        Returns False when there is nothing left to do.
    """

    def __init__(self, work: Callable[[], bool]) -> None:
        self._work = work
        self._go, self._begun, self._idle = (threading.Event() for _ in range(3))
        self._idle.set()
        self._stop = False
        self.failure: BaseException | None = None
        self.is_done = False
        self._thread = threading.Thread(target=self._run, name="disturber", daemon=True)

    def __enter__(self) -> "Disturber":
        """Start it, waiting."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self._stop = True
        self._go.set()
        self._thread.join()

    def resume(self) -> None:
        """Let it work; returns when it does."""
        if self.failure is None:
            self._idle.clear()
            self._begun.clear()
            self._go.set()
            self._begun.wait()

    def pause(self) -> None:
        """Return when it has stopped working."""
        self._go.clear()
        self._idle.wait()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._stop:
                self._go.wait()
                self._begun.set()
                while self._go.is_set() and not self._stop and not self.is_done:
                    self.is_done = not self._work()
                self._go.clear()
                self._idle.set()
        except BaseException as error:
            self.failure = error
        finally:
            self._begun.set()
            self._idle.set()


@dataclass(frozen=True)
class Beside:
    """Percentiles of a call's time alone and beside something else.

    Parameters
    ----------
    ratio : float
        Median over pairs of windows of beside / alone.
    low, high : float
        Quartiles of that ratio.
    alone_s, beside_s : float
        Medians over the windows.
    windows : int
        Pairs of them.
    """

    ratio: float
    low: float
    high: float
    alone_s: float
    beside_s: float
    windows: int

    def detail(self) -> str:
        """Return quartiles, absolute times and windows in words."""
        return (
            f"[{self.low:.3g} {self.high:.3g}] {time_text(self.beside_s)} : "
            f"{time_text(self.alone_s)}, {self.windows} windows"
        )


def beside(
    call: Work, disturber: Disturber, *, windows: int, window_s: float, share: float = 0.99
) -> Beside:
    """Compare a percentile of a call's time in windows alone and beside a disturber, in turns.

    Parameters
    ----------
    call : callable
        Timed with a wall clock: waiting is what is looked for.
    disturber : Disturber
        Works in every second window; when it is done no more pairs are begun.
    windows : int
        Pairs, at most.
    window_s : float
        Length of one.
    share : float
        Which percentile.
    """
    alone: list[float] = []
    disturbed: list[float] = []
    with no_collection():
        window_times(call, window_s)
        for _ in range(windows):
            alone.append(percentile(window_times(call, window_s), share))
            disturber.resume()
            times = window_times(call, window_s)
            was_busy = not disturber.is_done
            disturber.pause()
            if was_busy or not disturbed:
                disturbed.append(percentile(times, share))
            if disturber.is_done:
                break
    ratios = sorted(b / a for a, b in zip(alone, disturbed, strict=False))
    return Beside(
        statistics.median(ratios),
        ratios[len(ratios) // 4],
        ratios[(3 * len(ratios)) // 4],
        statistics.median(alone),
        statistics.median(disturbed),
        len(ratios),
    )


def window_times(call: Work, window_s: float) -> list[float]:
    """Return the time of each of as many calls as fit in a window."""
    times: list[float] = []
    now = time.perf_counter()
    end = now + window_s
    while now < end:
        call()
        begun, now = now, time.perf_counter()
        times.append(now - begun)
    return times
