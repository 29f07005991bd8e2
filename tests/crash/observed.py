"""What a store holds, as text that can be compared, read by a person and written into a trace.

Equal texts mean the same tables, settings, rows to the bit, optimizer state, timestamps, position
and cursor. Dense parameters are a text of their own: they are durable apart from the calls.
"""

from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

import monolith_kv as mkv

SCAN_ROWS = 64  # A scan's buffer is of so many rows, however few there are.


class Observed(NamedTuple):
    """Tables with their rows, position and cursor; dense parameters."""

    main: str
    dense: str


def observe(store: mkv.Store) -> Observed:
    # No public name tells a table's TTL, gate and learning rate.
    schemas = {entry.schema.name: entry.schema.to_json() for entry in _entries(store)}
    tables = [(name, schemas[name], _rows(table)) for name, table in sorted(store.tables.items())]
    dense = {name: store.dense[name].tolist() for name in sorted(store.dense)}
    main = f"{store.sequence} {sorted(store.cursor.items())} {tables}"
    return Observed(main, f"{store.dense.version} {dense}")


def _entries(store: mkv.Store) -> Any:
    return store._state.tables.values()


def _rows(table: mkv.Table) -> list[Any]:
    """Of each row: its id, timestamp, first number, and a hash of all numbers."""
    parts = list(table.scan(SCAN_ROWS))
    if not parts:
        return []
    found = np.concatenate([ids for ids, _ in parts])
    order = np.argsort(found)
    ids, state = found[order], table.state(found[order])
    rows = np.concatenate([rows for _, rows in parts])[order]
    floats = np.hstack([rows, *(state[name] for name in sorted(state))])
    hashes = [blake2b(row, digest_size=8).hexdigest() for row in np.ascontiguousarray(floats)]
    times, firsts = table.timestamps(ids).tolist(), floats[:, 0].tolist()
    return list(zip(ids.tolist(), times, firsts, hashes, strict=True))
