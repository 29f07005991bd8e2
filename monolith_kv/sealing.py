"""Seal: publish every row touched and every id removed since the last seal as one delta.

What must hold: the delta is the difference between two instants that fall between calls; it counts
once the manifest names it; if anything fails before, nothing is lost: rows count as touched,
sightings as pending, the calls stay in their logs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv._table import in_hand_block
from monolith_kv.budget import block_bytes, give_back, read_cold
from monolith_kv.calls import flush_ahead
from monolith_kv.catalog import commit, delta_of, drop_call_logs, drop_file
from monolith_kv.errors import StoreFullError
from monolith_kv.fids import without
from monolith_kv.published import Delta
from monolith_kv.state import NO_FIDS, StoreState, Summed, TableEntry, store_digest
from monolith_kv.storage import marks, sightings
from monolith_kv.storage.delta_log import DeltaWriter
from monolith_kv.storage.pending import join_pieces

# The next seal comes so soon that memory for rows that change meanwhile is kept: a tenth of a
# trainer's time would go to have it cleared, page by page. Not what one slow seal has taken.
SOON_S = 10.0
KEPT_BYTES = 256 << 20  # Of a table.
BLOCK_BYTES = 4 << 20  # Of rows in hand; of 1 to 8 MiB none was better beyond doubt.


@dataclass
class Plan:
    """What a seal found at its instant."""

    cursor: dict[str, Any] | None
    sealed_at: float
    entries: list[TableEntry]
    tables: list[dict[str, Any]]
    dropped: list[int]
    next_table_id: int
    dense: tuple[int, bytes] | None
    calls_from: int
    schema_changed: bool
    includes: list[str]
    mark: int
    pieces: dict[int, list[bytes]] = field(default_factory=dict)


def seal(state: StoreState, cursor: dict[str, Any] | None) -> Delta | None:
    """Publish a delta; None when there is nothing to publish.

    Parameters
    ----------
    state : StoreState
        Open "rw".
    cursor : dict or None
        Checked; None leaves it as it is.
    """
    with state.files:
        state.raise_failure()
        flush_ahead(state)
        plans: list[Plan] = []
        try:
            _flip(state, cursor, plans)
            if not plans:
                store_sightings(state)
                return None
            plan = plans[0]
            delta = _publish(state, plan)
        except BaseException:
            for plan in plans:
                _abort(state, plan)
            raise
        _settle(state, plan)
        give_back(state)
        return delta


def _flip(state: StoreState, cursor: dict[str, Any] | None, plans: list[Plan]) -> None:
    """Take the instant: from here on changes belong to the next delta.

    Notes
    -----
    What was begun is in `plans`, not returned: Ctrl-C may raise between a return and its use.
    """
    with state.mutex:
        entries = sorted(state.tables.values(), key=lambda entry: entry.id)
        with state.barrier:
            has_rows = any(entry.core.touched() for entry in entries)
        if not (has_rows or state.schema_changed or state.dense.is_pending or cursor is not None):
            return
        calls_from = state.roll_log()
        with state.barrier:
            plan = Plan(
                cursor=cursor,
                sealed_at=float(state.clock()),
                entries=entries,
                tables=state.tables_json(),
                dropped=[],
                next_table_id=state.next_table_id,
                dense=(state.dense.version, state.dense.data) if state.dense.is_pending else None,
                calls_from=calls_from,
                schema_changed=state.schema_changed,
                includes=list(state.instants),
                mark=state.next_mark(),
            )
            for entry in entries:  # Taken before the flips: these cannot fail.
                plan.pieces[entry.id] = entry.take_sightings()
            plans.append(plan)
            for entry in entries:
                entry.core.seal_flip()
        # A table that a delta has had and that is gone now.
        ids = {entry.id for entry in entries}
        plan.dropped = [t["id"] for t in state.manifest.tables if t["id"] not in ids]
        state.schema_changed = False


def _abort(state: StoreState, plan: Plan) -> None:
    """Put all of it back for the next seal; nothing of a table that was not flipped."""
    # First, as Ctrl-C may come in between; the next flip takes up what of the rest is not done.
    state.schema_changed = state.schema_changed or plan.schema_changed
    for entry in plan.entries:
        entry.core.seal_abort()


def _publish(state: StoreState, plan: Plan) -> Delta:
    """Write the file and name it in the manifest."""
    found = state.manifest
    sequence, epoch = found.sequence + 1, found.lineage.epoch
    with DeltaWriter(state.path, found.uuid, sequence, epoch) as writer:
        writer.meta(
            {
                "sequence": sequence,
                "lineage": found.lineage.to_json(),
                "cursor": plan.cursor,
                "tables": plan.tables,
                "dropped": plan.dropped,
                "sealed_at": plan.sealed_at,
                "calls_from": plan.calls_from,
                "includes": plan.includes,
            }
        )
        for entry in plan.entries:
            _write_table(state, writer, entry)
            for piece in plan.pieces[entry.id]:
                writer.sightings(entry.id, piece)
        if plan.dense is not None:
            writer.dense(*plan.dense)
        # Known only now: rows that were not summed at the instant were, as they were read.
        sums = [Summed(entry.schema, entry.core.seal_digest()) for entry in plan.entries]
        name, size = writer.publish({"digest": store_digest(sums)})
        named = {
            "name": name,
            "sequence": sequence,
            "epoch": epoch,
            "rows": writer.rows_written,
            "removals": writer.removals_written,
            "bytes": size,
            "sealed_at": plan.sealed_at,
        }
    commit(
        state,
        sequence=sequence,
        cursor=found.cursor if plan.cursor is None else plan.cursor,
        tables=plan.tables,
        next_table_id=plan.next_table_id,
        deltas=[*found.deltas, named],
        first_call_log=max(plan.calls_from, 1),
        sightings=None,
    )
    return delta_of(state, named)


def _write_table(state: StoreState, writer: DeltaWriter, entry: TableEntry) -> None:
    core = entry.core
    absent: list[NDArray[np.uint64]] = []
    kept: list[NDArray[np.uint64]] = [NO_FIDS]
    fids = core.seal_fids()
    step = max(1, block_bytes(state, BLOCK_BYTES) // core.record_bytes)
    # One for all: to clear memory anew takes longer than to read rows into it.
    block = in_hand_block(min(step, len(fids)) * core.record_bytes)
    for start in range(0, len(fids), step):
        for records in _read(state, entry, fids[start : start + step], block, absent):
            _write(writer, entry, records)
        # Rows that changed or went after the instant, as they were before that: written as they
        # come, so that memory holds few of them however long the seal takes. After the last block
        # nothing is added to them any more: every row of the view was read.
        kept += _write_saved(writer, entry, block)
    if absent:
        writer.removed(entry.id, without(np.concatenate(absent), np.concatenate(kept)))


def _write_saved(
    writer: DeltaWriter, entry: TableEntry, block: NDArray[np.uint8]
) -> Iterator[NDArray[np.uint64]]:
    """Write, by way of `block`, what was saved until now; yield the ids."""
    while len(records := entry.core.saved(True, block)):
        yield _write(writer, entry, records)
        if len(records) < len(block):
            return


def _read(
    state: StoreState,
    entry: TableEntry,
    fids: NDArray[np.uint64],
    block: NDArray[np.uint8],
    absent: list[NDArray[np.uint64]],
) -> list[NDArray[np.uint8]]:
    """Read rows of the view, from both tiers; into `block` those in memory."""
    core = entry.core
    if state.overflow is None:
        records, gone, _ = core.seal_read(fids, block)
        absent.append(gone)
        return [records]
    with state.mutex:  # No row moves between the tiers meanwhile.
        records, gone, cold = core.seal_read(fids, block)
        absent.append(gone)
        if not len(cold):
            return [records]
        return [records, core.seal_claim(read_cold(state, entry, cold).reshape(-1))]


def _write(
    writer: DeltaWriter, entry: TableEntry, records: NDArray[np.uint8]
) -> NDArray[np.uint64]:
    """Write records, if there are any; return their ids."""
    if len(records):
        writer.rows(entry.id, records, len(records) // entry.core.record_bytes)
    return entry.rows_of(records)["fid"].astype(np.uint64)


def _settle(state: StoreState, plan: Plan) -> None:
    """Forget what the delta covers, now that it counts."""
    interval = state.settings.delta_interval_s
    is_soon = interval is not None and interval <= SOON_S and state.budget is None
    for entry in plan.entries:
        entry.core.seal_end(KEPT_BYTES if is_soon else 0)
        del entry.pending_sightings[: len(plan.pieces[entry.id])]
    if plan.dense is not None and state.dense.version == plan.dense[0]:
        state.dense.is_pending = False
    del state.instants[: len(plan.includes)]
    state.is_log_whole = True
    state.overdue = None
    if isinstance(state.background_error, StoreFullError):
        state.background_error = None  # There is room again, and nothing was lost.
    if state.is_manifest_durable:
        marks.remove(state.path, plan.mark)
    drop_call_logs(state)
    for name in sightings.names(state.path):
        if name != state.manifest.sightings:
            drop_file(state, sightings.path_of(state.path, name))


def store_sightings(state: StoreState) -> None:
    """Keep sightings that no delta holds yet in a file of their own. Under files."""
    by_table = {}
    is_new = False
    for entry in state.tables.values():
        count = len(entry.pending_sightings)
        pieces = entry.take_sightings()
        is_new = is_new or len(pieces) != count
        if pieces:
            by_table[entry.id] = join_pieces(pieces)
    found = state.manifest
    if not is_new and (found.sightings is not None or not by_table):
        return
    name = sightings.store(state.path, found.uuid, found.sequence, found.lineage.epoch, by_table)
    if found.sightings != name:
        commit(state, sightings=name)
