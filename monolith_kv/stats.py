"""Figures about an open store, as one nested dict; `Store.stats` tells what each means."""

from typing import Any

from monolith_kv.budget import memory_by_kind
from monolith_kv.state import StoreState, TableEntry
from monolith_kv.traffic import count, hit_rate, read_report, write_amplification


def store_stats(state: StoreState) -> dict[str, Any]:
    """Return the figures of `Store.stats`.

    Parameters
    ----------
    state : StoreState
        Of an open store.

    Returns
    -------
    dict
        As documented there.
    """
    found = state.manifest
    tables = {name: _table_stats(entry) for name, entry in state.tables.items()}
    overflow, budget, log = state.overflow, state.budget, state.log
    return {
        "path": state.path,
        "mode": state.mode,
        "uuid": found.uuid,
        "sequence": found.sequence,
        "epoch": max(1, found.lineage.epoch),
        "tables": tables,
        "rows": sum(table["rows"] for table in tables.values()),
        "memory": {
            "bytes": sum(sum(table["memory"].values()) for table in tables.values()),
            "limit": state.settings.memory_limit,
            "used": None if budget is None else budget.used(),
            "is_full": budget is not None and budget.is_full,
            "kinds": memory_by_kind(state),
        },
        "overflow": None
        if overflow is None
        else {
            "rows": overflow.rows,
            "bytes": overflow.bytes,
            "dead_bytes": overflow.dead_bytes,
            "limit": state.settings.overflow_limit,
            "corrupt": overflow.corrupt,
            **_traffic(state),
        },
        # A writer's own, or for a reader that of whoever else has the store open.
        "traffic": read_report(state.path) if state.mode == "r" or overflow is not None else None,
        "files": {
            "deltas": len(found.deltas),
            "delta_bytes": sum(entry["bytes"] for entry in found.deltas),
            "snapshots": len(found.snapshots),
            "snapshot_bytes": sum(entry["bytes"] for entry in found.snapshots),
            "call_log_bytes": 0 if log is None else log.size,
            "call_log_records": 0 if log is None else log.records,
        },
        "dense": {"version": state.dense.version, "bytes": len(state.dense.data)},
        "calls_replayed": state.calls_replayed,
        "lost": [dict(loss) for loss in state.lost],
        "damaged": list(state.damaged),
        "suspects": dict(state.suspects),
        "background": {
            "error": None if state.background_error is None else repr(state.background_error),
            "failure": None if state.failure is None else repr(state.failure),
        },
    }


def _traffic(state: StoreState) -> dict[str, Any]:
    """What went between the tiers since the store was opened."""
    counts = count(state)
    return {
        **{name: counts[name] for name in counts if name != "hits"},
        "hit_rate": hit_rate(counts),
        "write_amplification": write_amplification(counts),
    }


def _table_stats(entry: TableEntry) -> dict[str, Any]:
    core = entry.core
    return {
        "dim": core.dim,
        "rows": core.rows,
        "cold_rows": core.cold_rows,
        "record_bytes": core.record_bytes,
        "memory": core.memory(),
        "touched": core.touched(),
        "gate": core.gate_stats(),
        "counters": core.counters(),
    }
