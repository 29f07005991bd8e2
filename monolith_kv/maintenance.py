"""The background: threads that seal and compact in slices, keep room in memory, and prefetch.

That which keeps room also reports what goes between the tiers.

What it fails at is kept for the next call to raise; while a due seal fails, calls of a store that
is open "interval" are refused, so that a crash loses no more than the interval. It waits on the
monotonic clock, so that a clock that jumps neither stalls it nor makes it run wild.
"""

import contextlib
import threading
import time
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from monolith_kv.budget import promote_ahead
from monolith_kv.catalog import retire
from monolith_kv.compaction import Compactor
from monolith_kv.errors import Error
from monolith_kv.sealing import seal
from monolith_kv.state import StoreState, TableEntry
from monolith_kv.traffic import Reporter

SLICE_MAX_S = 0.02  # Of compaction, in one go.
SLICE_SHARE = 0.05  # Of the time between two slices.
SLICES_PER_INTERVAL = 20
PAUSE_MAX_S = 1.0
RETRY_S = 5.0  # A seal that fails is tried again after so long, or its interval.
ROOM_PAUSE_S = 0.001  # Between two steps: calls that wait for the mutex come in here.
PREFETCH_IDS = 4096
PREFETCH_QUEUE_MAX = 64


class Maintenance:
    """Runs the background work of one open store.

    Parameters
    ----------
    state : StoreState
        Of the store.
    compactor : Compactor
        Shared with `Store.compact`.
    """

    def __init__(self, state: StoreState, compactor: Compactor) -> None:
        self._state = state
        self._compactor = compactor
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._queue: deque[tuple[TableEntry, NDArray[np.uint64]]] = deque(maxlen=PREFETCH_QUEUE_MAX)
        self._fetcher: threading.Thread | None = None
        self._full = threading.Event()
        self._evictor: threading.Thread | None = None
        self._reporter: Reporter | None = None  # For that thread.

    def start(self) -> None:
        """Begin; nothing where there is nothing to do in the background."""
        state = self._state
        has_threads = state.settings.delta_interval_s is not None
        if state.mode == "r":
            return
        if state.budget is not None and has_threads and self._evictor is None:
            self._reporter = Reporter(state, time.monotonic())
            self._evictor = threading.Thread(
                target=_make_room, args=(weakref.ref(self), self._full, self._stop),
                name="monolith-kv-room", daemon=True,
            )  # fmt: skip
            self._evictor.start()
        if state.mode == "replica":
            return
        if state.budget is not None:
            state.prefetch = self._prefetch
            if has_threads:
                state.budget.wake = self._full.set
        if has_threads and self._thread is None:
            self._thread = threading.Thread(
                target=_loop, args=(weakref.ref(self), self._stop), name="monolith-kv", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End; returns when the work under way is done."""
        self._stop.set()
        self._wake.set()
        self._full.set()
        for thread in (self._thread, self._fetcher, self._evictor):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    # --- seal and compact ------------------------------------------------------------------

    def pause_s(self) -> float:
        """Seconds from one slice to the next."""
        interval = self._state.settings.delta_interval_s or PAUSE_MAX_S
        return min(interval / SLICES_PER_INTERVAL, PAUSE_MAX_S)

    def step(self, sealed: float) -> float:
        """Do what is due; return when the last seal was, on the monotonic clock."""
        state = self._state
        interval = state.settings.delta_interval_s or 0.0
        now = time.monotonic()
        try:
            if state.failure is not None and state.rescue is not None:
                state.rescue(state)
            if state.failure is not None:
                return sealed
            if now - sealed >= interval:
                sealed = now - max(0.0, interval - RETRY_S)  # If it fails.
                self._seal()
                sealed = now
                with state.files:
                    retire(state)
            elif self._may_compact():
                self._compactor.run(min(SLICE_MAX_S, SLICE_SHARE * self.pause_s()), force=False)
        except Exception as error:  # Kept for the next call, which raises it.
            if not self._stop.is_set():
                state.background_error = error
        return sealed

    def _seal(self) -> None:
        try:
            seal(self._state, None)
        except Exception as error:
            self._state.overdue = error
            raise
        self._state.overdue = None  # There may have been nothing left to seal.

    def _may_compact(self) -> bool:
        return any(
            entry.schema.ttl_default is not None or entry.schema.ttl_slots
            for entry in self._state.tables.values()
        )

    # --- room in memory --------------------------------------------------------------------

    def make_room(self) -> None:
        """Evict until there is some room, a step at a time; what fails shows in the next call."""
        # A replica makes room in the calls that change it.
        budget = self._state.budget if self._state.mode == "rw" else None
        while budget is not None and budget.step() and not self._stop.wait(ROOM_PAUSE_S):
            self.report()
        self.report()

    def report(self) -> None:
        """Tell other processes what went between the tiers, if that is due."""
        if self._reporter is not None:
            with contextlib.suppress(MemoryError):
                self._reporter.step(time.monotonic())

    # --- prefetch --------------------------------------------------------------------------

    def _prefetch(self, entry: TableEntry, ids: NDArray[np.uint64]) -> None:
        self._queue.append((entry, ids))
        if self._fetcher is None:
            self._fetcher = threading.Thread(
                target=_fetch, args=(weakref.ref(self), self._stop), name="monolith-kv-prefetch",
                daemon=True,
            )  # fmt: skip
            self._fetcher.start()
        self._wake.set()

    def fetch(self) -> None:
        """Bring in what was asked for; it may be late, but it is never an error of that call."""
        state = self._state
        while self._queue and not self._stop.is_set():
            entry, ids = self._queue.popleft()
            for start in range(0, len(ids), PREFETCH_IDS):
                if state.closed or entry.dropped:
                    break
                with contextlib.suppress(Error, OSError, MemoryError):
                    promote_ahead(state, entry, ids[start : start + PREFETCH_IDS])

    def wait(self) -> None:
        """Return when something was asked for."""
        self._wake.wait(PAUSE_MAX_S)
        self._wake.clear()


def _loop(owner: "weakref.ref[Maintenance]", stop: threading.Event) -> None:
    sealed = time.monotonic()
    pause_s = 0.0
    while not stop.wait(pause_s):
        # A store that nobody holds any more is let go of, as after a crash.
        maintenance = owner()
        if maintenance is None:
            return
        pause_s = maintenance.pause_s()
        sealed = maintenance.step(sealed)
        del maintenance


def _make_room(
    owner: "weakref.ref[Maintenance]", full: threading.Event, stop: threading.Event
) -> None:
    while not stop.is_set():
        maintenance = owner()
        if maintenance is None:
            return
        maintenance.make_room()
        del maintenance
        full.wait(PAUSE_MAX_S)
        full.clear()


def _fetch(owner: "weakref.ref[Maintenance]", stop: threading.Event) -> None:
    while not stop.is_set():
        maintenance = owner()
        if maintenance is None:
            return
        maintenance.fetch()
        maintenance.wait()
        del maintenance
