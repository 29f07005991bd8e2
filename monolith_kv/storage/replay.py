"""From call logs to tables: the calls that no delta covers, made again.

What must hold: calls are made in the order of the logs, none left out in the middle; only the last
log may end in a torn tail, which is cut and reported.
"""

import contextlib
import os
from typing import Any

from monolith_kv.budget import promote
from monolith_kv.errors import CorruptionError, FormatVersionError
from monolith_kv.loading import read_ahead
from monolith_kv.schema import TableSchema
from monolith_kv.state import StoreState
from monolith_kv.storage import call_log, files
from monolith_kv.storage.format import FileType
from monolith_kv.storage.log_finish import finish_log

AHEAD_FROM_BYTES = 1 << 20  # Of a log: a thread costs more than it saves below.


def replay(state: StoreState, first: int, *, must_be_closed: bool) -> None:
    """Make the logged calls from log `first` on again."""
    present = call_log.numbers(state.path)
    state.next_log = max([first, *(number + 1 for number in present)])
    numbers = [number for number in present if number >= first]
    expected = list(range(first, first + len(numbers)))
    if numbers != expected:
        gap = next(want for have, want in zip(numbers, expected, strict=True) if have != want)
        path = call_log.path_of(state.path, gap)
        raise CorruptionError(f"{path} is missing, later call logs are there", path)
    is_writer = state.mode == "rw" and state.lock is not None
    for number in numbers:
        is_last = number == numbers[-1]
        path = call_log.path_of(state.path, number)
        with call_log.read(path, must_be_closed=must_be_closed or not is_last) as log:
            if state.mode != "r":
                log.header.refuse_to_write(path)
            if log.header.identity.uuid != state.manifest.uuid:
                raise CorruptionError(f"{path} belongs to another store", path, 0)
            is_small = log.size < AHEAD_FROM_BYTES
            with contextlib.nullcontext(iter(log)) if is_small else read_ahead(log) as calls:
                for call in calls:
                    _replay_call(state, call, path)
                    state.calls_replayed += 1
            torn, is_closed = log.torn, log.is_closed
        if torn is not None and is_writer:
            files.cut_tail(path, torn.offset)
            state.lost.append(
                {"what": "torn tail of a call log", "path": path, "calls": torn.records}
            )
        elif is_writer and os.path.exists(path + files.TORN_SUFFIX):
            # Cut by a recovery that was itself killed before it could tell.
            state.lost.append({"what": "torn tail of a call log", "path": path, "calls": 1})
        if not is_closed and is_writer:
            finish_log(path, FileType.CALLS)


def _replay_call(state: StoreState, call: call_log.Call, path: str) -> None:
    try:
        with state.mutex:
            _make_call(state, call)
            if state.budget is not None:
                state.budget.settle()
    except (ValueError, KeyError, FormatVersionError) as error:
        raise CorruptionError(
            f"{path}: a call on table {call.table} cannot be made again: {error!r}", path
        ) from error


def _make_call(state: StoreState, call: call_log.Call) -> None:
    by_id = {entry.id: entry for entry in state.tables.values()}
    if isinstance(call, call_log.Mark):
        state.instants.append(str(call.settings["snapshot"]))
        return
    if isinstance(call, call_log.Create):
        entry = state.make_entry(call.table, TableSchema.from_json(call.settings))
        state.put_entry(entry)
        state.next_table_id = max(state.next_table_id, call.table + 1)
        state.schema_changed = True
        return
    entry = by_id[call.table]
    core = entry.core
    if isinstance(call, call_log.Drop):
        state.drop_entry(entry)
        state.schema_changed = True
    elif isinstance(call, call_log.Configure):
        state.change_schema(entry, TableSchema.from_json(call.settings))
        state.schema_changed = True
    elif isinstance(call, (call_log.Insert, call_log.Push, call_log.Upsert, call_log.Remove)):
        promote(state, entry, call.fids)
        if isinstance(call, call_log.Insert):
            core.insert(call.fids, call.now)
        elif isinstance(call, call_log.Push):
            core.push(call.fids, _of_width(call.gradients, core.dim), call.now)
        elif isinstance(call, call_log.Upsert):
            core.upsert(call.fids, _of_width(call.rows, core.dim), call.now)
        else:
            core.remove(call.fids)


def _of_width(rows: Any, dim: int) -> Any:
    if len(rows) and rows.shape[1] != dim:
        raise ValueError(f"rows of width {rows.shape[1]}, the table has {dim}")
    return rows if len(rows) else rows.reshape(0, dim)
