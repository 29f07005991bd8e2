"""Calls that change rows: straight to the data plane, or one by one through log and tiers.

What must hold in a serial store (one that logs calls or overflows): the log has the calls in the
order in which memory took them; a call is in the log before it is in memory, and in neither if it
raises; a call that was acknowledged is as durable as the store was opened for.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from monolith_kv._table import PreparedChange
from monolith_kv.budget import promote
from monolith_kv.errors import ClosedError, Error, StoreFullError
from monolith_kv.state import NO_FIDS, NO_RECORDS, StoreState, TableEntry
from monolith_kv.storage.call_log import CallLogWriter

COMPANY_S = 60.0  # So long after another thread's call none holds the mutex while it flushes.
Fids = NDArray[np.uint64]
Rows = NDArray[np.float32]


def pull(state: StoreState, entry: TableEntry, ids: Fids, out: Rows | None) -> Rows:
    """Count, admit and insert; return the rows, in `out` only if nothing was raised."""
    core = entry.core
    if not state.is_serial:
        rows = np.empty((len(ids), core.dim), np.float32) if out is None else out
        inserted = core.pull(ids, rows, state.clock(), True)
        if len(inserted):
            _acknowledge_unlogged(state)
        else:
            state.check_after()
        return rows
    rows = np.empty((len(ids), core.dim), np.float32)

    def call(log: CallLogWriter | None) -> int:
        now = state.clock()
        may_insert = state.budget is None or not state.budget.is_full
        before = 0 if log is None else log.size
        core.inserted = NO_FIDS
        try:
            core.pull(ids, rows, now, may_insert)
            if log is None or not len(core.inserted):
                return 0
            return log.insert(entry.id, now, core.inserted)
        except BaseException as error:
            if log is not None:
                if log.size == before:
                    core.put_back(NO_RECORDS, core.inserted)
                state.note_failure(log, error)
            raise
        finally:
            core.inserted = None

    _serially(state, entry, ids, call, is_coming=False)
    if out is None:
        return rows
    out[...] = rows
    return out


def push(state: StoreState, entry: TableEntry, ids: Fids, gradients: Rows) -> None:
    """Take one optimizer step for each distinct id that has a row."""
    core = entry.core
    if not state.is_serial:
        core.push(ids, gradients, state.clock())
        _acknowledge_unlogged(state)
        return

    def call(log: CallLogWriter | None) -> int:
        return _change(state, entry, ids, gradients, log, is_upsert=False)

    _serially(state, entry, ids, call)


def upsert(state: StoreState, entry: TableEntry, ids: Fids, rows: Rows) -> None:
    """Set embeddings."""
    core = entry.core
    if not state.is_serial:
        core.upsert(ids, rows, state.clock())
        _acknowledge_unlogged(state)
        return

    def call(log: CallLogWriter | None) -> int:
        if state.budget is not None and state.budget.is_full:
            is_there = np.empty(len(ids), np.uint8)
            core.contains(ids, is_there)
            if not is_there.all():
                raise StoreFullError(
                    "no room for new ids: raise memory_limit or overflow_limit, or expire or "
                    "remove rows"
                )
        return _change(state, entry, ids, rows, log, is_upsert=True)

    _serially(state, entry, ids, call)


def _change(
    state: StoreState,
    entry: TableEntry,
    ids: Fids,
    values: Rows,
    log: CallLogWriter | None,
    *,
    is_upsert: bool,
) -> int:
    """Log a push or an upsert and make it; the offset in the log. Under the mutex."""
    now, offset = state.clock(), 0
    with PreparedChange(entry.core, ids, values, is_upsert, state.helper) as change:
        with taking_back(state, log, lambda: change.is_started):
            if log is not None and len(ids):
                write = log.upsert if is_upsert else log.push
                offset = write(entry.id, now, ids, values, change.settle)
            change.start(now)
        state.is_logging = False  # It is made as far as anyone else can tell.
        _flush_meanwhile(state, log)
    return offset


def remove(state: StoreState, entry: TableEntry, ids: Fids) -> int:
    """Remove ids; return how many were there."""
    core = entry.core
    if not state.is_serial:
        removed = core.remove(ids)
        _acknowledge_unlogged(state)
        return removed
    removed = 0

    def call(log: CallLogWriter | None) -> int:
        nonlocal removed
        rows, offset = core.rows, 0
        with taking_back(state, log, lambda: core.rows != rows):
            if log is not None and len(ids):
                offset = log.remove(entry.id, ids)
            removed = core.remove(ids)
        return offset

    _serially(state, entry, ids, call)
    return removed


def log_schema(
    state: StoreState,
    write: Callable[[CallLogWriter], int],
    change: Callable[[], None],
    is_made: Callable[[], bool],
) -> None:
    """Log a change of schemas and make it, durably as the store was opened for. Under the mutex."""
    state.check_reentry()
    log, offset = state.open_log(), 0
    try:
        state.is_logging = True
        with taking_back(state, log, is_made):
            if log is not None:
                offset = write(log)
            change()
    finally:
        state.is_logging = False
    state.schema_changed = True
    if log is None:
        state.mark_unsealed()
    acknowledge(state, log, offset, is_patient=False)


@contextlib.contextmanager
def taking_back(
    state: StoreState, log: CallLogWriter | None, is_made: Callable[[], bool]
) -> Iterator[None]:
    """Log a call and make it: if that raises it is in neither, or in both. Under the mutex.

    Notes
    -----
    It is in both where Ctrl-C raises behind it. Whether it was made `is_made` has to tell, since
    what was returned is not to be had then.
    """
    before = 0 if log is None else log.size
    try:
        yield
    except BaseException as error:
        if log is not None:
            try:
                if log.size > before and not is_made():
                    log.take_back(log.size)
            finally:
                state.note_failure(log, error)
        raise


def acknowledge(
    state: StoreState, log: CallLogWriter | None, offset: int, *, is_patient: bool = True
) -> None:
    """Return when a logged call is as durable as was asked for; not patient: under the mutex."""
    if log is not None and offset and state.settings.durability == "sync":
        # A seal or snapshot that has ended the log meanwhile has made it durable: no error.
        _sync(state, log, offset, is_patient=is_patient)


def flush_ahead(state: StoreState) -> None:
    """Flush the call log before the mutex is taken for a flip, which has little to flush then."""
    log = state.log
    if log is not None:
        _sync(state, log, None, is_patient=False)


def _sync(state: StoreState, log: CallLogWriter, offset: int | None, *, is_patient: bool) -> None:
    try:
        log.sync(offset, is_patient=is_patient)
    except Error as error:
        if state.log is log:  # Or else a rescue has replaced it meanwhile.
            state.note_failure(log, error)
        raise


def _flush_meanwhile(state: StoreState, log: CallLogWriter | None) -> None:
    """Let the disk work while a helper changes memory; not where others would wait for the disk."""
    if log is not None and state.settings.durability == "sync" and _is_alone(state):
        log.flush_alone()


def _is_alone(state: StoreState) -> bool:
    """Whether one thread has made all calls for long, as far as is known. Under the mutex."""
    thread, now = threading.get_ident(), state.monotonic()
    if state.caller not in (0, thread):
        state.company_at = now
    state.caller = thread
    return now - state.company_at >= COMPANY_S


def _acknowledge_unlogged(state: StoreState) -> None:
    if not state.is_marked:
        state.mark_unsealed()
    state.check_after()


def _serially(
    state: StoreState,
    entry: TableEntry,
    ids: Fids,
    call: Callable[[CallLogWriter | None], int],
    *,
    is_coming: bool = True,
) -> None:
    # A pull mostly appends nothing: nobody's flush should wait for it.
    with _coming(state) if is_coming else contextlib.nullcontext(), state.mutex:
        state.check_reentry()
        state.check_writable()
        _is_alone(state)  # A pull is company, too.
        if entry.dropped:
            raise ClosedError(f"table {entry.schema.name} was dropped")
        if state.budget is not None and state.budget.is_full:
            state.budget.settle()  # Before rows of this call come in: it may send them out again.
        promote(state, entry, ids)
        log = state.open_log()
        try:  # In no context manager: at the begin of its end Ctrl-C may raise.
            state.is_logging = True
            offset = call(log)
        finally:
            state.is_logging = False
        if log is None and not state.is_marked:
            state.mark_unsealed()
        if state.budget is not None:
            state.budget.settle()
    acknowledge(state, log, offset)


def _coming(state: StoreState) -> AbstractContextManager[None]:
    log = state.log if state.settings.durability == "sync" else None
    return contextlib.nullcontext() if log is None else log.coming()
