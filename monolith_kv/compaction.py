"""Compaction: remove expired records, a step at a time, and give their memory and disk back.

What must hold: a record goes only when now - timestamp >= ttl, in whole seconds; where a clock that
jumped ahead seems to be the reason (over half of a table, and over 1,000 rows), nothing of that
table goes unless forced, which is found out before the first one goes.
"""

import contextlib
import threading
from dataclasses import dataclass, field

import numpy as np

from monolith_kv.budget import promote
from monolith_kv.calls import acknowledge, taking_back
from monolith_kv.errors import StoreFullError
from monolith_kv.published import Compaction
from monolith_kv.state import StoreState, TableEntry

SUSPECT_ROWS = 1000
DRIFT_S = 0.05  # What a clock may gain on the monotonic one and still count as going on.
COUNT, EXPIRE, SHRINK, DONE = range(4)


@dataclass
class Step:
    """How far the pass has come in one table."""

    entry: TableEntry
    rules: int
    phase: int = COUNT
    cursor: int = 0
    expired: int = 0
    removed: int = 0


@dataclass
class Pass:
    """One round over all tables, begun at one time."""

    now: float
    began: float
    force: bool
    steps: dict[int, Step] = field(default_factory=dict)


class Compactor:
    """Goes round the tables, for as long as it is let; the next call goes on there.

    Parameters
    ----------
    state : StoreState
        Of an open store.
    """

    def __init__(self, state: StoreState) -> None:
        self._state = state
        self._turn = threading.Lock()
        self._pass: Pass | None = None  # Guarded by _turn.

    def run(self, budget_s: float | None, *, force: bool) -> Compaction:
        """Compact for about `budget_s` seconds, or until all is done.

        Notes
        -----
        A pass that an earlier call began is gone on with as long as the clock just went on since;
        after a jump it begins anew, so that `finished` is true of the present time.
        """
        state = self._state
        with self._turn:
            started = state.monotonic()
            now = float(state.clock())
            current = self._pass
            if current is None or budget_s is None or not self._goes_on(current, now, force):
                current = self._pass = Pass(now, started, force)
                state.suspects = {}
            expired = freed = 0
            finished = True
            for entry in sorted(state.tables.values(), key=lambda entry: entry.id):
                step = current.steps.get(entry.id)
                if step is None or step.rules != entry.rules:
                    step = current.steps[entry.id] = Step(entry, entry.rules)
                while step.phase != DONE and not entry.dropped:
                    if budget_s is not None and state.monotonic() - started >= budget_s:
                        finished = False
                        break
                    removed, bytes_freed = self._advance(current, step)
                    expired, freed = expired + removed, freed + bytes_freed
            log = state.log
            if expired and log is not None:
                acknowledge(state, log, log.size)
            elif expired:
                state.mark_unsealed()
            if finished:
                self._pass = None
                if expired and state.overflow is not None:
                    # What was expired is gone, whether or not the disk gives room back now.
                    with state.mutex, contextlib.suppress(OSError, StoreFullError):
                        freed += max(0, state.overflow.shrink())
            return Compaction(expired, freed, finished)

    def _goes_on(self, current: Pass, now: float, force: bool) -> bool:
        gained = now - current.now
        elapsed = self._state.monotonic() - current.began
        return force == current.force and 0 <= gained <= elapsed + DRIFT_S

    def _advance(self, current: Pass, step: Step) -> tuple[int, int]:
        """Do one bounded step; return records removed and bytes given back."""
        schema = step.entry.schema
        if step.phase == COUNT and schema.ttl_default is None and not schema.ttl_slots:
            step.phase = DONE
        elif step.phase == COUNT:
            self._count(current, step)
        elif step.phase == EXPIRE:
            return self._expire(step), 0
        elif step.phase == SHRINK:
            freed, step.cursor = step.entry.core.shrink(step.cursor)
            if step.cursor < 0:
                step.phase = DONE
            return 0, freed
        return 0, 0

    def _count(self, current: Pass, step: Step) -> None:
        core = step.entry.core
        if current.force or core.rows <= SUSPECT_ROWS:
            step.phase, step.cursor = EXPIRE, 0
            return
        now = float(self._state.clock())
        fids, cold, step.cursor = core.expired(step.cursor, now)
        step.expired += len(fids) + len(cold)
        if step.cursor >= 0:
            return
        name, rows = step.entry.schema.name, core.rows
        if step.expired > SUSPECT_ROWS and 2 * step.expired > rows:
            self._state.suspects[name] = (
                f"table {name}: {step.expired} of {rows} records would expire at once, as after a "
                "clock that jumped ahead; nothing of it was removed; check the clock, then "
                "compact(force=True) if it is right"
            )
            step.phase = DONE
            return
        self._state.suspects.pop(name, None)
        step.phase, step.cursor = EXPIRE, 0

    def _expire(self, step: Step) -> int:
        """Remove what has expired in one part of the index."""
        state, entry = self._state, step.entry
        core = entry.core
        now = float(state.clock())
        if state.is_serial:
            with state.mutex:
                state.check_reentry()
                state.check_writable()
                fids, cold, cursor = core.expired(step.cursor, now)
                if len(cold):
                    fids = np.concatenate([fids, cold])
                    promote(state, entry, fids)  # All: what comes back may send others out.
                log = state.open_log()
                rows = core.rows
                try:
                    state.is_logging = True
                    with taking_back(state, log, lambda: core.rows != rows):
                        if log is not None and len(fids):
                            log.remove(entry.id, fids)
                        removed = len(core.expire(fids, now))
                finally:
                    state.is_logging = False
        else:
            fids, _, cursor = core.expired(step.cursor, now)
            removed = len(core.expire(fids, now))
        if removed:
            state.mark_unsealed()
        step.cursor = cursor
        step.removed += removed
        if cursor < 0:
            step.phase, step.cursor = SHRINK if step.removed else DONE, 0
        return removed
